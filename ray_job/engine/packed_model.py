"""What a model must offer to be batched continuously by `continuous.py`.

Shapes: T packed tokens of any rows, S of them whose next token is wanted, A axes of positions, D decoder width,
W width of embeddings, N query heads, H key/value heads, C head_dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ray_job.engine.layout import PromptLayout
from ray_job.rows import Picture

__all__ = ["Attend", "AttentionLayer", "PackedModel", "PromptLayout"]

Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Layer, rotated queries (S, N, C) and keys (T, H, C), values (T, H, C) → (S, N · C); S is T, or only `wanted_S`.

Scores are scaled by 1/√C; a model with another scale multiplies its queries.
"""


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """How one layer of a decoder attends."""

    num_heads: int  # key/value heads
    head_dim: int
    sliding_window: int | None = None  # a query sees so many keys before itself, not counting its own; None: all
    softcap: float | None = None  # scores become softcap · tanh(score / softcap)

    def __post_init__(self) -> None:
        assert self.sliding_window is None or self.sliding_window >= 0
        assert self.softcap is None or self.softcap > 0

    def hides_from(self, end: int) -> bool:
        """Whether its window hides any of a row's first `end` tokens from the last of them."""
        return self.sliding_window is not None and end > self.sliding_window + 1


class PackedModel(Protocol):
    """A decoder that runs tokens of many rows side by side and leaves attention to the engine."""

    layers: Sequence[AttentionLayer]
    num_axes: int  # of positions: 1, or 3 with multimodal rotary embeddings
    max_len: int  # longest row, prompt and answer

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
        """Features (tokens, W) of each; at most `max_crops` crops at once in memory."""
        ...

    def layout(self, ids_L: npt.NDArray[np.int32], pictures: Sequence[Picture]) -> PromptLayout:
        """Positions and blocks of a prompt with −k for picture k. Raises ValueError for a prompt that can have none.

        What it says of a token follows from the tokens and pictures up to that one, or up to the end of its block:
        prompts that begin alike share keys.
        """
        ...

    def embed(self, input_ids_L: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        """int64 (L,) on the CPU, −k standing for the rows of `features[k - 1]` in order → (L, W)."""
        ...

    def embed_tokens(self, ids_T: Tensor) -> Tensor:
        """Ids of the vocabulary, int64 (T,) on the model's device and not looked at → (T, W)."""
        ...

    def forward(
        self, embeds_TW: Tensor, positions_AT: Tensor, is_long_T: Tensor, wanted_S: Tensor, attend: Attend
    ) -> Tensor:
        """All layers; calls `attend` once for each, in order. → (S, D), of tokens `wanted_S`, which are ascending."""
        ...

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """float32 (S, V)."""
        ...
