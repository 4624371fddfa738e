"""Attention over whole rows: torch's fused function, or plain products of matrices that every device computes alike.

Shapes: B rows, N query heads, H key/value heads, L queries, K keys, C head_dim.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Attention: TypeAlias = Literal["sdpa", "eager"]


def attend(
    kind: Attention,
    query_BNLC: Tensor,
    key_BHKC: Tensor,
    value_BHKC: Tensor,
    mask_BHLK: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """Scaled attention → (B, L, N · C). H divides N: neighbouring query heads share keys and values.

    mask_BHLK   for sdpa bool (True attends) or additive, for eager additive; H may be 1; None attends to every key
    is_causal   for sdpa without a mask, where the keys are the queries' own: no query sees a later key; eager needs
                a mask for that
    """
    repeats = query_BNLC.shape[1] // key_BHKC.shape[1]
    if kind == "sdpa" and mask_BHLK is None:
        attended_BNLC = F.scaled_dot_product_attention(
            query_BNLC, key_BHKC, value_BHKC, is_causal=is_causal, enable_gqa=repeats > 1
        )
    else:
        if repeats > 1:
            key_BHKC, value_BHKC = (heads.repeat_interleave(repeats, dim=1) for heads in (key_BHKC, value_BHKC))
        if kind == "sdpa":
            attended_BNLC = F.scaled_dot_product_attention(query_BNLC, key_BHKC, value_BHKC, attn_mask=mask_BHLK)
        else:
            attended_BNLC = _eager(query_BNLC, key_BHKC, value_BHKC, mask_BHLK)
    return attended_BNLC.transpose(1, 2).flatten(2)


def _eager(query_BNLC: Tensor, key_BNKC: Tensor, value_BNKC: Tensor, mask_BHLK: Tensor | None) -> Tensor:
    """(B, N, L, C); the softmax is in float32 whatever the dtype is."""
    scores_BNLK = query_BNLC @ key_BNKC.transpose(2, 3) * query_BNLC.shape[-1] ** -0.5
    if mask_BHLK is not None:
        scores_BNLK = scores_BNLK + mask_BHLK
    weights_BNLK = scores_BNLK.softmax(-1, dtype=torch.float32).to(query_BNLC.dtype)
    attended_BNLC: Tensor = weights_BNLK @ value_BNKC
    return attended_BNLC
