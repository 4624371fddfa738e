"""From scores to weights, whatever their shape."""

from __future__ import annotations

import torch
from torch import Tensor


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Scores that a soft cap keeps below it; None: as they are."""
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def softmax(scores: Tensor, dim: int) -> Tensor:
    """Weights in the scores' dtype, computed in float32."""
    return torch.softmax(scores, dim=dim, dtype=torch.float32).to(scores.dtype)
