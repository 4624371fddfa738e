"""From logits to the next token, each row by its own parameters and its own random numbers.

A row's random number is a hash of its seed and of how many tokens it has, so it depends on nothing else: not on
neighbours, batch order, device or how often a step was repeated. The order of operations is the field's usual one:
repetition penalty, temperature, top-k, top-p, draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_job.spec import GenerationParams

_CANDIDATES = 256  # sorted at first
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
    """Draws from each row's truncated distribution by its inverse, likeliest tokens first, (S,).

    Nearly every draw falls among the likeliest few tokens; only rows whose draw does not are sorted in full.
    """
    device, vocab_size = logits_SV.device, logits_SV.shape[-1]

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=device)[:, None]

    seeds_S = torch.tensor([param.seed for param in params], device=device)
    draw = _Draw(
        # From the largest logit down, nothing grows beyond float32 however low the temperature.
        scaled_SV=(logits_SV - logits_SV.amax(dim=-1, keepdim=True)) / column([param.temperature for param in params]),
        top_k_S1=column([min(param.top_k or vocab_size, vocab_size) for param in params]),
        top_p_S1=column([param.top_p for param in params]),
        u_S1=uniform(seeds_S, torch.tensor(counters, device=device))[:, None],
    )
    tokens_S, is_settled_S = draw.among(*draw.scaled_SV.topk(min(_CANDIDATES, vocab_size), dim=-1))
    if not is_settled_S.all():
        rest = draw.of(~is_settled_S)
        found_S, _ = rest.among(*rest.scaled_SV.sort(dim=-1, descending=True, stable=True))
        tokens_S = tokens_S.masked_scatter(~is_settled_S, found_S)
    return tokens_S


@dataclass(frozen=True, slots=True)
class _Draw:
    """Rows that sample: their scores, where they are cut off, and their random numbers."""

    scaled_SV: Tensor
    top_k_S1: Tensor  # the vocabulary's size: all
    top_p_S1: Tensor
    u_S1: Tensor

    def of(self, rows_S: Tensor) -> _Draw:
        """Some of the rows."""
        return _Draw(self.scaled_SV[rows_S], self.top_k_S1[rows_S], self.top_p_S1[rows_S], self.u_S1[rows_S])

    def among(self, sorted_SC: Tensor, order_SC: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens drawn from the C likeliest, (S,), and whether the other tokens could not have changed them."""
        vocab_size, num_sorted = self.scaled_SV.shape[-1], sorted_SC.shape[-1]
        rank_C = torch.arange(num_sorted, device=sorted_SC.device)
        is_uncut_S1 = self.top_k_S1 >= vocab_size
        cut_SC = sorted_SC.masked_fill(rank_C >= self.top_k_S1, -torch.inf)
        all_S1, few_S1 = (scores.logsumexp(dim=-1, keepdim=True) for scores in (self.scaled_SV, cut_SC))
        probs_SC = (cut_SC - torch.where(is_uncut_S1, all_S1, few_S1)).exp()
        before_SC = probs_SC.cumsum(dim=-1) - probs_SC
        keep_SC = (before_SC < self.top_p_S1) | (rank_C == 0)
        cumulative_SC = (probs_SC * keep_SC).double().cumsum(dim=-1)
        # Is all that is kept among the sorted? If not, and nothing is cut, it sums up to 1.
        is_whole_S1 = (self.top_k_S1 <= num_sorted) | (is_uncut_S1 & ~keep_SC[:, -1:])
        u_S1 = self.u_S1 * torch.where(is_whole_S1, cumulative_SC[:, -1:], 1.0)
        is_within_S1 = is_uncut_S1 & (self.top_p_S1 >= 1) & (u_S1 < cumulative_SC[:, -1:])
        rank_S1 = (cumulative_SC <= u_S1).sum(dim=-1, keepdim=True).clamp_max(num_sorted - 1)
        return order_SC.gather(-1, rank_S1)[:, 0], (is_whole_S1 | is_within_S1)[:, 0]
