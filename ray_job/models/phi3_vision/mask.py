"""The one attention mask of a forward: causal, without padding, within the sliding window.

Shapes: B rows, L new tokens, K keys, of which the last L are the new ones.
"""

from __future__ import annotations

import torch
from torch import Tensor


def causal_mask(
    num_new: int,
    num_keys: int,
    attention_mask_BK: Tensor | None,
    sliding_window: int | None,
    device: torch.device,
) -> Tensor:
    """bool (B or 1, 1, L, K), True where a query may attend. Padding may stand anywhere in a row.

    A query always attends to itself, so a padding query has no empty row, which would become NaN; no real
    query sees a padding key. The official window of w lets a query see w keys before itself, w + 1 in all.
    """
    query_L1 = torch.arange(num_keys - num_new, num_keys, device=device)[:, None]
    key_1K = torch.arange(num_keys, device=device)[None, :]
    allowed_LK = key_1K <= query_L1
    if needs_window(num_keys, sliding_window):
        assert sliding_window is not None
        allowed_LK = allowed_LK & (query_L1 - key_1K <= sliding_window)
    if attention_mask_BK is None:
        return allowed_LK[None, None]
    real_B11K = attention_mask_BK.to(device=device, dtype=torch.bool)[:, None, None, :]
    return (allowed_LK & real_B11K) | (key_1K == query_L1)


def needs_window(num_keys: int, sliding_window: int | None) -> bool:
    """Whether the sliding window hides any of `num_keys` keys from the last query."""
    return sliding_window is not None and num_keys > sliding_window + 1


def additive(mask_BHLK: Tensor, dtype: torch.dtype) -> Tensor:
    """The same mask as the eager attention adds it: 0 where True, the lowest number of `dtype` elsewhere.

    A mask that is already of a float dtype is returned as it is.
    """
    if mask_BHLK.dtype != torch.bool:
        return mask_BHLK
    lowest = torch.finfo(dtype).min
    return torch.zeros(mask_BHLK.shape, dtype=dtype, device=mask_BHLK.device).masked_fill(~mask_BHLK, lowest)
