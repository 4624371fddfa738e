"""Keys and values of the tokens seen so far, for one batch that grows together.

Shapes: B rows, H key/value heads, K keys so far, L new tokens, D head_dim.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class KeyValueStore(Protocol):
    """What the model asks of a cache; an engine may bring its own."""

    @property
    def length(self) -> int:
        """Keys a row already holds; the model calls this only when it builds the mask itself."""

    def update(self, key_BHLD: Tensor, value_BHLD: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Takes one layer's new keys and values in, gives back all that the new tokens attend over."""


class KVCache:
    """Appends along the sequence. With `capacity`, room for that many tokens is taken once, at first use.

    Keys are stored rotated. A row that passes `original_max_position_embeddings` has to be prefilled again
    into a new cache: the stored keys carry the short factors.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity = capacity
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._lengths: list[int] = []

    @property
    def length(self) -> int:
        """Tokens held, as counted at the first layer; 0 when new."""
        return self._lengths[0] if self._lengths else 0

    def update(self, key_BHLD: Tensor, value_BHLD: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Appends at `layer_idx`; returns that layer's keys and values, each (B, H, K + L, D).

        Raises ValueError beyond `capacity`. Layers are filled in order the first time.
        """
        if layer_idx == len(self._keys):
            self._add_layer(key_BHLD, value_BHLD)
        start = self._lengths[layer_idx]
        end = start + key_BHLD.shape[2]
        self._lengths[layer_idx] = end
        if self._capacity is None:
            self._keys[layer_idx] = torch.cat((self._keys[layer_idx], key_BHLD), dim=2)
            self._values[layer_idx] = torch.cat((self._values[layer_idx], value_BHLD), dim=2)
            return self._keys[layer_idx], self._values[layer_idx]
        if end > self._capacity:
            raise ValueError(f"the cache has room for {self._capacity} tokens, {end} are needed")
        self._keys[layer_idx][:, :, start:end] = key_BHLD
        self._values[layer_idx][:, :, start:end] = value_BHLD
        return self._keys[layer_idx][:, :, :end], self._values[layer_idx][:, :, :end]

    def _add_layer(self, key_BHLD: Tensor, value_BHLD: Tensor) -> None:
        room = self._capacity or 0
        for store, new in ((self._keys, key_BHLD), (self._values, value_BHLD)):
            store.append(new.new_zeros((*new.shape[:2], room, new.shape[3])))
        self._lengths.append(0)
