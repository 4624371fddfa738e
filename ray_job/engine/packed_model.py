"""What a model must offer to be batched continuously by `continuous.py`.

Shapes: T packed tokens of any rows, S of them whose next token is wanted, D decoder width,
N query heads, H key/value heads, C head_dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from ray_job.rows import Picture

Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Layer, rotated queries (S, N, C) and keys (T, H, C), values (T, H, C) → (S, N · C); S is T, or only `wanted_S`."""


class PackedModel(Protocol):
    """A decoder that runs tokens of many rows side by side and leaves attention to the engine."""

    num_layers: int
    num_heads: int  # key/value heads
    head_dim: int
    max_len: int  # longest row, prompt and answer
    sliding_window: int | None  # a query sees so many keys before itself

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        ...

    def is_long(self, num_tokens: int) -> bool:
        """Which of two position encodings a row of so many tokens takes; keys of the other are stale."""
        ...

    def num_crops(self, picture: Picture) -> int:
        """What encoding a picture costs."""
        ...

    def encode_pictures(self, pictures: Sequence[Picture], max_crops: int | None = None) -> list[Tensor]:
        """Features (tokens, D) of each; at most `max_crops` crops at once in memory."""
        ...

    def embed(self, input_ids_L: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        """int64 (L,) on the CPU, −k standing for the rows of `features[k - 1]` in order → (L, D)."""
        ...

    def embed_tokens(self, ids_T: Tensor) -> Tensor:
        """Ids of the vocabulary, int64 (T,) on the model's device and not looked at → (T, D)."""
        ...

    def forward(
        self, embeds_TD: Tensor, positions_T: Tensor, is_long_T: Tensor, wanted_S: Tensor, attend: Attend
    ) -> Tensor:
        """All layers; calls `attend` once for each, in order. → (S, D), of tokens `wanted_S`, which are ascending."""
        ...

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """float32 (S, V)."""
        ...
