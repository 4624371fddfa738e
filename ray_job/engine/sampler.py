"""From logits to the next token, each row by its own parameters and its own random numbers.

A row's random number is a hash of its seed and of how many tokens it has, so it depends on nothing else: not on
neighbours, batch order, device or how often a step was repeated. The order of operations is the field's usual one:
repetition penalty, temperature, top-k, top-p, draw.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ray_job.spec import GenerationParams

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def next_tokens(
    logits_BV: Tensor,
    params: Sequence[GenerationParams],
    num_generated: Sequence[int],
    seen_ids: Sequence[Sequence[int]],
) -> list[int]:
    """The next token of every row.

    Args:
        logits_BV: fp32 logits of each row's last token.
        params: each row's parameters.
        num_generated: tokens each row has generated so far; the counter of its random numbers.
        seen_ids: text tokens of each row's prompt and answer so far, for the repetition penalty. Only read for rows
            that have one.
    """
    logits_BV = _penalised(logits_BV, params, seen_ids)
    tokens_B = logits_BV.argmax(dim=-1)
    sampling = [row for row, param in enumerate(params) if not param.is_greedy]
    if sampling:
        rows_S = torch.tensor(sampling, device=logits_BV.device)
        drawn_S = _draw(logits_BV[rows_S], [params[row] for row in sampling], [num_generated[row] for row in sampling])
        tokens_B = tokens_B.index_put((rows_S,), drawn_S)
    return tokens_B.tolist()


def uniform(seeds_S: Tensor, counters_S: Tensor) -> Tensor:
    """Random numbers in [0, 1), float64 (S,): splitmix64 of each seed at its counter."""
    z_S = seeds_S + (counters_S + 1) * _GOLDEN
    z_S = (z_S ^ _logical_shift(z_S, 30)) * _MIX_1
    z_S = (z_S ^ _logical_shift(z_S, 27)) * _MIX_2
    z_S = z_S ^ _logical_shift(z_S, 31)
    return _logical_shift(z_S, 11).to(torch.float64) * 2.0**-53


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _penalised(logits_BV: Tensor, params: Sequence[GenerationParams], seen_ids: Sequence[Sequence[int]]) -> Tensor:
    rows = [row for row, param in enumerate(params) if param.repetition_penalty != 1.0]
    if not rows:
        return logits_BV
    logits_BV = logits_BV.clone()
    for row in rows:
        ids = torch.tensor(sorted(set(seen_ids[row])), device=logits_BV.device)
        scores = logits_BV[row, ids]
        penalty = params[row].repetition_penalty
        logits_BV[row, ids] = torch.where(scores < 0, scores * penalty, scores / penalty)
    return logits_BV


def _draw(logits_SV: Tensor, params: Sequence[GenerationParams], counters: Sequence[int]) -> Tensor:
    """Draws from each row's truncated distribution by its inverse, (S,)."""
    device, vocab_size = logits_SV.device, logits_SV.shape[-1]

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=device)[:, None]

    scaled_SV = logits_SV / column([param.temperature for param in params])
    sorted_SV, order_SV = scaled_SV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(vocab_size, device=device)
    keep_SV = rank_V < column([param.top_k or vocab_size for param in params])
    probs_SV = sorted_SV.masked_fill(~keep_SV, -torch.inf).softmax(dim=-1)
    before_SV = probs_SV.cumsum(dim=-1) - probs_SV
    keep_SV = (before_SV < column([param.top_p for param in params])) | (rank_V == 0)
    cumulative_SV = (probs_SV * keep_SV).double().cumsum(dim=-1)
    seeds_S = torch.tensor([param.seed for param in params], device=device)
    u_S1 = uniform(seeds_S, torch.tensor(counters, device=device))[:, None] * cumulative_SV[:, -1:]
    rank_S1 = (cumulative_SV <= u_S1).sum(dim=-1, keepdim=True).clamp_max(vocab_size - 1)
    return order_SV.gather(-1, rank_S1)[:, 0]
