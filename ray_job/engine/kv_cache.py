"""Keys and values of all running rows: one pool of tokens for each layer, and where a row's tokens lie in it.

Shapes: T packed tokens of a step, H key/value heads, P tokens of the pool, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_job.engine.packed_model import AttentionLayer, PackedModel
from ray_job.engine.row import Chunk, Row


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens of the pool from `start` to `end`, which are a row's tokens in order."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


class KVPool:
    """Memory for `num_tokens` tokens, taken at once, and a spare place that belongs to no row.

    `keys` and `values` of a layer are (H, P, D), H and D its own. In memory heads come first, so that a row's keys of
    one head are one block, or tokens do, as flash kernels want it.
    """

    def __init__(
        self,
        *,
        layers: Sequence[AttentionLayer],
        num_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        tokens_first: bool = False,
    ) -> None:
        def memory(layer: AttentionLayer) -> Tensor:
            num_heads, head_dim = layer.num_heads, layer.head_dim
            if tokens_first:
                return torch.empty((num_tokens + 1, num_heads, head_dim), dtype=dtype, device=device).transpose(0, 1)
            return torch.empty((num_heads, num_tokens + 1, head_dim), dtype=dtype, device=device)

        self.num_tokens = num_tokens
        self.spare = num_tokens
        self.keys = [memory(layer) for layer in layers]
        self.values = [memory(layer) for layer in layers]

    @classmethod
    def of(cls, model: PackedModel, num_tokens: int, tokens_first: bool = False) -> KVPool:
        """A pool for a model's keys and values."""
        return cls(
            layers=model.layers,
            num_tokens=num_tokens,
            dtype=model.dtype,
            device=model.device,
            tokens_first=tokens_first,
        )

    def scatter(self, layer: int, places_T: Tensor, key_THD: Tensor, value_THD: Tensor) -> None:
        """Puts each token's key and value at its place in the pool."""
        self.keys[layer].index_copy_(1, places_T, key_THD.transpose(0, 1))
        self.values[layer].index_copy_(1, places_T, value_THD.transpose(0, 1))

    def put(self, layer: int, start: int, key_THD: Tensor, value_THD: Tensor) -> None:
        """Puts tokens side by side from `start` on; faster than `scatter` for many."""
        end = start + len(key_THD)
        self.keys[layer][:, start:end] = key_THD.transpose(0, 1)
        self.values[layer][:, start:end] = value_THD.transpose(0, 1)


def place(chunk: Chunk[Row]) -> int:
    """Where in the pool a chunk's first token belongs; the others follow it."""
    assert chunk.row.span is not None
    return chunk.row.span.start - chunk.row.num_shared + chunk.start


def stretches(row: Row, start: int, end: int) -> list[Stretch]:
    """Where a row's tokens `start` to `end` lie, in order: shared ones first."""
    assert row.span is not None
    found, position = [], 0
    pieces = [(piece.span.start, piece.length) for piece in row.shared]
    for pool_start, length in (*pieces, (row.span.start, row.span.capacity)):
        first, last = max(start, position), min(end, position + length)
        if first < last:
            found.append(Stretch(pool_start + first - position, pool_start + last - position))
        position += length
    return found
