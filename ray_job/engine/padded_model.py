"""What a model must offer to be run in padded batches by `static.py`.

Shapes: B rows, L new tokens, H key/value heads, T tokens of a picture, D decoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class PaddedModel(Protocol):
    """A decoder over left- or right-padded rows that share one cache."""

    max_len: int  # longest row, prompt and answer

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def is_long(self, num_tokens: int) -> bool:
        """Which of two position encodings a row of so many tokens takes; cached keys of the other are stale."""
        ...

    def new_cache(self) -> Any:
        """An empty cache for one batch, handed to `forward` and to nothing else."""
        ...

    def encode_pictures(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """uint8 (H, W, 3) each → features (T, D) each."""
        ...

    def embed_row(self, input_ids_L: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        """int64 (L,) on the CPU, −k standing for the rows of `features[k - 1]` in order → (L, D)."""
        ...

    def forward(
        self,
        inputs_embeds_BLD: Tensor,
        *,
        position_ids_BL: Tensor,
        is_long_B: Tensor,
        attention_mask_BL: Tensor,
        cache: Any,
        last_B: Tensor,
    ) -> Tensor:
        """All layers over new tokens, appended to the cache. → float32 logits (B, V) at place `last_B` of each row."""
        ...
