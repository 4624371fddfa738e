"""Attention of chunks of prompts, each over all its row's keys before and in it.

Shapes: L tokens of a chunk, B of a block of queries, H key/value heads, Q query heads for each of them, N = H · Q,
D head_dim, K keys, P tokens of the pool.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_job.engine.kv_cache import Stretch, stretches
from ray_job.engine.row import Chunk, Row
from ray_job.engine.scores import capped, softmax

# A fused kernel also computes the scores that its mask hides. So a prompt's queries take only the keys that one of
# their block sees (measured in bench/RESULTS.md).
_BLOCK_QUERIES = 192


@dataclass(frozen=True, slots=True)
class PromptAttention:
    """A chunk of a prompt and all keys that its tokens see."""

    num_tokens: int
    stretches: list[Stretch]
    parts: list[_Part]

    @classmethod
    def of(cls, chunk: Chunk[Row], sliding_window: int | None, device: torch.device) -> PromptAttention:
        firsts_L, lasts_L = chunk.row.prompt.layout.seen(chunk.start, chunk.end, sliding_window)
        first = int(firsts_L.min())
        parts = []
        for start in range(0, len(lasts_L), _BLOCK_QUERIES):
            firsts_B, lasts_B = (each_L[start : start + _BLOCK_QUERIES] for each_L in (firsts_L, lasts_L))
            keys = slice(int(firsts_B.min()) - first, int(lasts_B.max()) + 1 - first)
            key_K = torch.arange(first + keys.start, first + keys.stop, device=device)
            mask_BK = key_K <= torch.from_numpy(lasts_B).to(device)[:, None]
            if sliding_window is not None:
                mask_BK &= key_K >= torch.from_numpy(firsts_B).to(device)[:, None]
            parts.append(_Part(keys, mask_BK))
        return cls(chunk.end - chunk.start, stretches(chunk.row, first, chunk.end), parts)

    def attend(self, query_LHQD: Tensor, keys_HPD: Tensor, values_HPD: Tensor, softcap: float | None) -> Tensor:
        """(L, H, Q, D) → (L, H · Q, D)."""
        num_queries = query_LHQD.shape[2]
        query_1NLD = query_LHQD.flatten(1, 2).transpose(0, 1)[None]
        keys_1NKD, values_1NKD = self._joined(keys_HPD, num_queries), self._joined(values_HPD, num_queries)
        attend = F.scaled_dot_product_attention if softcap is None else _Capped(softcap)
        queries = torch.split(query_1NLD, _BLOCK_QUERIES, dim=2)
        outputs = [
            attend(query_1NBD, keys_1NKD[:, :, part.keys], values_1NKD[:, :, part.keys], attn_mask=part.mask_BK)
            for query_1NBD, part in zip(queries, self.parts, strict=True)
        ]
        return torch.cat([output_1NBD[0].transpose(0, 1) for output_1NBD in outputs])

    def _joined(self, pool_HPD: Tensor, num_queries: int) -> Tensor:
        """The chunk's keys (or values) side by side, (1, H · Q, K, D)."""
        parts = [pool_HPD[:, stretch.start : stretch.end] for stretch in self.stretches]
        joined_HKD = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return joined_HKD.repeat_interleave(num_queries, dim=0)[None] if num_queries > 1 else joined_HKD[None]


@dataclass(frozen=True, slots=True)
class _Part:
    """A block of queries: which of the chunk's keys any of them sees, and which of those each one sees."""

    keys: slice
    mask_BK: Tensor


@dataclass(frozen=True, slots=True)
class _Capped:
    """Attention with a soft cap on its scores, which no fused kernel has."""

    softcap: float

    def __call__(self, query_1NBD: Tensor, key_1NKD: Tensor, value_1NKD: Tensor, attn_mask: Tensor) -> Tensor:
        scores_1NBK = (query_1NBD * (1 / math.sqrt(query_1NBD.shape[-1]))) @ key_1NKD.transpose(2, 3)
        scores_1NBK = capped(scores_1NBK, self.softcap).masked_fill(~attn_mask, -torch.inf)
        return softmax(scores_1NBK, dim=-1) @ value_1NKD
