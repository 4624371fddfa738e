"""Attention of packed tokens, each over exactly its own row's keys, wherever in the pool they lie.

A step's tokens come in three kinds, and packing keeps this order:

    grouped   decoding rows that read the same keys (a shared picture): those are read once for all of them
    alone     every other decoding row
    prompts   chunks of prompts

Built once a step and called once a layer, so everything that depends on the layer's sliding window alone is made in
the constructor, once for each window.

Shapes: T packed tokens, S of them with queries, H key/value heads, Q query heads for each of them, D head_dim,
R decoding rows, P tokens of the pool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_job.engine.decode_attention import Group, Located, attend_each, grouped, located
from ray_job.engine.kv_cache import KVPool, place
from ray_job.engine.packed_model import AttentionLayer
from ray_job.engine.prompt_attention import PromptAttention
from ray_job.engine.row import Chunk, Row


class PackedAttention:
    """Stores a layer's new keys and values and attends.

    Args:
        pool: where keys lie.
        chunks: what the step computes. `order` lists their indices as the model must be given their tokens, and
            `wanted_S` the tokens, so ordered, whose row wants its next one.
        layers: how each layer attends.
    """

    def __init__(self, pool: KVPool, chunks: Sequence[Chunk[Row]], layers: Sequence[AttentionLayer]) -> None:
        self._pool = pool
        self._layers = layers
        device = pool.keys[0].device
        longest = max(chunk.end for chunk in chunks)
        # A window that hides nothing in this step is none.
        windows = [layer.sliding_window if layer.hides_from(longest) else None for layer in layers]
        widest = None if None in windows else max(window for window in windows if window is not None)
        decodes = [located(chunk, widest) for chunk in chunks if chunk.is_decode]
        prompts = [chunk for chunk in chunks if not chunk.is_decode]
        groups, alone = grouped(decodes)
        grouped_rows = [member.chunk for members, _ in groups for member in members]
        packed = [*grouped_rows, *(member.chunk for member in alone), *prompts]
        plan = _Plan.of([Group.of(*group, device) for group in groups], alone, prompts, widest, device)
        plans = {widest: plan}
        # Under a narrower window rows seldom read the same keys.
        for window in set(windows) - {widest}:
            each = [located(chunk, window) for chunk in packed[: len(decodes)]]
            plans[window] = _Plan.of([], each, prompts, window, device)
        self._plans = [plans[window] for window in windows]
        index_of = {chunk: index for index, chunk in enumerate(chunks)}
        self.order = [index_of[chunk] for chunk in packed]
        self.num_keys_padded = sum(int(group.is_pad_RK.sum()) for group in plan.groups)
        lengths = [chunk.end - chunk.start for chunk in packed]
        ends = torch.tensor(lengths).cumsum(0).tolist()
        wanted = [end - 1 for end, chunk in zip(ends, packed, strict=True) if chunk.needs_logits]
        self.wanted_S = torch.tensor(wanted, dtype=torch.int64, device=device)
        self._num_tokens = sum(lengths)
        self._num_decodes = len(decodes)
        self._places_T = torch.tensor([place(chunk) for chunk in packed[: len(decodes)]], device=device)
        self._prompt_places = [(place(chunk), chunk.end - chunk.start) for chunk in prompts]

    def __call__(self, layer: int, query_SND: Tensor, key_THD: Tensor, value_THD: Tensor) -> Tensor:
        """Query heads N = H · Q, rotated, of all tokens or of `wanted_S`; keys and values of all → (S, N · D)."""
        self._store(layer, key_THD, value_THD)
        plan, softcap = self._plans[layer], self._layers[layer].softcap
        keys_HPD, values_HPD = self._pool.keys[layer], self._pool.values[layer]
        num_heads, head_dim = key_THD.shape[1:]
        num_queries = query_SND.shape[1] // num_heads
        query_SHQD = query_SND.reshape(len(query_SND), num_heads, num_queries, head_dim)
        scaled_RHQD = query_SHQD[: self._num_decodes] * (1 / math.sqrt(head_dim))
        outputs, first = [], 0
        for group in plan.groups:
            outputs.append(group.attend(scaled_RHQD[first : first + group.num_rows], keys_HPD, values_HPD, softcap))
            first += group.num_rows
        outputs += attend_each(scaled_RHQD[first:], plan.alone, keys_HPD, values_HPD, softcap)
        first = self._num_decodes
        if len(query_SND) < self._num_tokens:
            scaled_RHQD = query_SHQD[first:] * (1 / math.sqrt(head_dim))
            outputs += attend_each(scaled_RHQD, plan.asking, keys_HPD, values_HPD, softcap)
        else:
            for prompt in plan.prompts:
                query_LHQD = query_SHQD[first : first + prompt.num_tokens]
                outputs.append(prompt.attend(query_LHQD, keys_HPD, values_HPD, softcap))
                first += prompt.num_tokens
        return torch.cat([output.flatten(1) for output in outputs]) if outputs else query_SND.flatten(1)

    def _store(self, layer: int, key_THD: Tensor, value_THD: Tensor) -> None:
        first = self._num_decodes
        if first:
            self._pool.scatter(layer, self._places_T, key_THD[:first], value_THD[:first])
        for start, num_tokens in self._prompt_places:
            end = first + num_tokens
            self._pool.put(layer, start, key_THD[first:end], value_THD[first:end])
            first = end


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which keys a step's tokens read in layers of one sliding window."""

    groups: list[Group]
    alone: list[Located]
    prompts: list[PromptAttention]
    asking: list[Located]  # in the last layer a prompt asks only for its last token, like a decoding row's

    @classmethod
    def of(
        cls,
        groups: list[Group],
        alone: list[Located],
        prompts: Sequence[Chunk[Row]],
        sliding_window: int | None,
        device: torch.device,
    ) -> _Plan:
        return cls(
            groups,
            alone,
            [PromptAttention.of(chunk, sliding_window, device) for chunk in prompts],
            [located(chunk, sliding_window) for chunk in prompts if chunk.needs_logits],
        )
