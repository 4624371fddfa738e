"""Attention of packed tokens, each over exactly its own row's keys, wherever in the pool they lie.

A step's tokens come in three kinds, and packing keeps this order:

    grouped   decoding rows that read the same keys (a shared picture): those are read once for all of them
    alone     every other decoding row
    prompts   chunks of prompts, causal

Built once a step and called once a layer, so everything that does not depend on the layer is made in the constructor.

Shapes: T packed tokens, H key/value heads, Q query heads for each of them, D head_dim, R rows of a group,
L tokens of a chunk, B of a block of it, K keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_job.engine.kv_cache import KVPool, Stretch, place, stretches
from ray_job.engine.row import Chunk, Row

# Fewer shared tokens are not worth a group's extra steps.
_MIN_GROUP_KEYS = 64
# A fused kernel also computes the scores that its mask hides. So a prompt's queries take only the keys up to the last
# of their block (measured in bench/RESULTS.md).
_BLOCK_QUERIES = 192


class PackedAttention:
    """Stores a layer's new keys and values and attends.

    Args:
        pool: where keys lie.
        chunks: what the step computes. `order` lists their indices as the model must be given their tokens, and
            `wanted_S` the tokens, so ordered, whose row wants its next one.
        sliding_window: a query sees so many keys before itself; None: all.
    """

    def __init__(self, pool: KVPool, chunks: Sequence[Chunk[Row]], sliding_window: int | None) -> None:
        self._pool = pool
        device = pool.keys[0].device
        decodes = [_located(chunk, sliding_window) for chunk in chunks if chunk.is_decode]
        prompts = [chunk for chunk in chunks if not chunk.is_decode]
        groups, self._alone = _grouped(decodes)
        self._groups = [_Group.of(members, shared, device) for members, shared in groups]
        self._prompts = [_Prompt.of(chunk, sliding_window, device) for chunk in prompts]
        grouped = [member for members, _ in groups for member in members]
        packed = [*(member.chunk for member in (*grouped, *self._alone)), *prompts]
        index_of = {chunk: index for index, chunk in enumerate(chunks)}
        self.order = [index_of[chunk] for chunk in packed]
        self.num_keys_padded = sum(int(group.is_pad_RK.sum()) for group in self._groups)
        lengths = [chunk.end - chunk.start for chunk in packed]
        ends = torch.tensor(lengths).cumsum(0).tolist()
        wanted = [end - 1 for end, chunk in zip(ends, packed, strict=True) if chunk.needs_logits]
        self.wanted_S = torch.tensor(wanted, dtype=torch.int64, device=device)
        self._num_tokens = sum(lengths)
        self._num_decodes = len(decodes)
        self._places_T = torch.tensor([place(chunk) for chunk in packed[: len(decodes)]], device=device)
        # In the last layer a prompt asks only for its last token, which then is like a decoding row's.
        self._asking = [_located(chunk, sliding_window) for chunk in prompts if chunk.needs_logits]

    def __call__(self, layer: int, query_SND: Tensor, key_THD: Tensor, value_THD: Tensor) -> Tensor:
        """Query heads N = H · Q, rotated, of all tokens or of `wanted_S`; keys and values of all → (S, N · D)."""
        self._store(layer, key_THD, value_THD)
        keys_HPD, values_HPD = self._pool.keys[layer], self._pool.values[layer]
        num_heads, head_dim = key_THD.shape[1:]
        num_queries = query_SND.shape[1] // num_heads
        query_SHQD = query_SND.reshape(len(query_SND), num_heads, num_queries, head_dim)
        scaled_RHQD = query_SHQD[: self._num_decodes] * (1 / math.sqrt(head_dim))
        outputs, first = [], 0
        for group in self._groups:
            outputs.append(group.attend(scaled_RHQD[first : first + group.num_rows], keys_HPD, values_HPD))
            first += group.num_rows
        outputs += _attend_each(scaled_RHQD[first:], self._alone, keys_HPD, values_HPD)
        first = self._num_decodes
        if len(query_SND) < self._num_tokens:
            scaled_RHQD = query_SHQD[first:] * (1 / math.sqrt(head_dim))
            outputs += _attend_each(scaled_RHQD, self._asking, keys_HPD, values_HPD)
        else:
            for prompt in self._prompts:
                outputs.append(prompt.attend(query_SHQD[first : first + prompt.num_tokens], keys_HPD, values_HPD))
                first += prompt.num_tokens
        return torch.cat([output.flatten(1) for output in outputs]) if outputs else query_SND.flatten(1)

    def _store(self, layer: int, key_THD: Tensor, value_THD: Tensor) -> None:
        first = self._num_decodes
        if first:
            self._pool.scatter(layer, self._places_T, key_THD[:first], value_THD[:first])
        for prompt in self._prompts:
            end = first + prompt.num_tokens
            self._pool.put(layer, prompt.place, key_THD[first:end], value_THD[first:end])
            first = end


@dataclass(frozen=True, slots=True)
class _Located:
    """One token of a row and where all its keys lie."""

    chunk: Chunk[Row]
    stretches: list[Stretch]


def _located(chunk: Chunk[Row], sliding_window: int | None) -> _Located:
    """The last token of a chunk and its keys."""
    return _Located(chunk, stretches(chunk.row, _first_key(chunk.end - 1, sliding_window), chunk.end))


def _first_key(position: int, sliding_window: int | None) -> int:
    """The first key that the query at `position` sees."""
    return 0 if sliding_window is None else max(0, position - sliding_window)


def _attend_each(query_RHQD: Tensor, members: Sequence[_Located], keys_HPD: Tensor, values_HPD: Tensor) -> list[Tensor]:
    """One scaled query for each member → (R, H, Q, D), in a list that is empty if there is none."""
    if not members:
        return []
    queries = query_RHQD.transpose(2, 3).unbind()
    pairs = zip(queries, members, strict=True)
    return [torch.stack([_attend_one(query_HDQ, each.stretches, keys_HPD, values_HPD) for query_HDQ, each in pairs])]


def _attend_one(query_HDQ: Tensor, found: list[Stretch], keys_HPD: Tensor, values_HPD: Tensor) -> Tensor:
    """One token over its keys, (H, Q, D). Plain products: a fused kernel has nothing to gain from one query."""
    scores = [torch.bmm(keys_HPD[:, stretch.start : stretch.end], query_HDQ) for stretch in found]
    weights_HKQ = _softmax(scores[0] if len(scores) == 1 else torch.cat(scores, dim=1), dim=1)
    output, first = None, 0
    for stretch in found:
        weights_HQK = weights_HKQ[:, first : first + len(stretch)].transpose(1, 2)
        part_HQD = torch.bmm(weights_HQK, values_HPD[:, stretch.start : stretch.end])
        output = part_HQD if output is None else output + part_HQD
        first += len(stretch)
    assert output is not None
    return output


def _softmax(scores: Tensor, dim: int) -> Tensor:
    return torch.softmax(scores, dim=dim, dtype=torch.float32).to(scores.dtype)


@dataclass(frozen=True, slots=True)
class _Group:
    """Decoding rows that share a stretch of keys; the rest of each row's keys is gathered and padded."""

    shared: Stretch
    num_rows: int
    rest_RK: Tensor  # places in the pool
    is_pad_RK: Tensor

    @classmethod
    def of(cls, members: Sequence[_Located], shared: Stretch, device: torch.device) -> _Group:
        rests = [_without(member.stretches, shared) for member in members]
        width = max(len(rest) for rest in rests)
        # Pads point at a key that is there: what was never written may be NaN, which no weight of 0 undoes.
        padded = [[*rest, *[shared.start] * (width - len(rest))] for rest in rests]
        is_pad = [[column >= len(rest) for column in range(width)] for rest in rests]
        return cls(shared, len(members), torch.tensor(padded, device=device), torch.tensor(is_pad, device=device))

    def attend(self, query_RHQD: Tensor, keys_HPD: Tensor, values_HPD: Tensor) -> Tensor:
        """(R, H, Q, D) → the same shape."""
        num_rows, num_heads, num_queries, head_dim = query_RHQD.shape
        num_shared = len(self.shared)
        slots_P = slice(self.shared.start, self.shared.end)
        query_HMD = query_RHQD.transpose(0, 1).reshape(num_heads, -1, head_dim)  # M = R · Q
        shared_HMK = torch.bmm(query_HMD, keys_HPD[:, slots_P].transpose(1, 2))
        query_HRQD = query_RHQD.transpose(0, 1)
        rest_HRQK = torch.matmul(query_HRQD, keys_HPD[:, self.rest_RK].transpose(2, 3))
        rest_HRQK = rest_HRQK.masked_fill(self.is_pad_RK[:, None], -torch.inf)
        shared_HRQK = shared_HMK.view(num_heads, num_rows, num_queries, num_shared)
        weights_HRQK = _softmax(torch.cat((shared_HRQK, rest_HRQK), dim=-1), dim=-1)
        weights_HMK = weights_HRQK[..., :num_shared].reshape(num_heads, -1, num_shared)
        output_HMD = torch.bmm(weights_HMK, values_HPD[:, slots_P])
        rest_HRQD = torch.matmul(weights_HRQK[..., num_shared:], values_HPD[:, self.rest_RK])
        return (output_HMD.view(rest_HRQD.shape) + rest_HRQD).transpose(0, 1)


def _without(found: Sequence[Stretch], shared: Stretch) -> list[int]:
    """Places of a row's keys but for those in `shared`, which is the start of one of its stretches."""
    rest: list[int] = []
    for stretch in found:
        first = shared.end if stretch.start == shared.start else stretch.start
        rest.extend(range(first, stretch.end))
    return rest


def _grouped(members: Sequence[_Located]) -> tuple[list[tuple[list[_Located], Stretch]], list[_Located]]:
    """Groups of rows that begin some stretch at the same place, and the rows left alone."""
    readers: dict[int, list[_Located]] = {}
    for member in members:
        for stretch in member.stretches:
            readers.setdefault(stretch.start, []).append(member)
    by_start: dict[int, list[_Located]] = {}
    alone = []
    for member in members:
        common = [stretch for stretch in member.stretches if len(readers[stretch.start]) > 1]
        if common:
            by_start.setdefault(max(common, key=len).start, []).append(member)
        else:
            alone.append(member)
    groups = []
    for start, rows in by_start.items():
        num_shared = min(len(stretch) for row in rows for stretch in row.stretches if stretch.start == start)
        num_all = sum(len(stretch) for row in rows for stretch in row.stretches)
        num_rest = num_all - num_shared * len(rows)
        # Gathering the rest copies it; that must not cost more than reading the shared keys once saves.
        if len(rows) > 1 and num_shared >= _MIN_GROUP_KEYS and num_rest <= num_shared * (len(rows) - 1):
            groups.append((rows, Stretch(start, start + num_shared)))
        else:
            alone.extend(rows)
    return groups, alone


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A chunk of a prompt and all keys before and in it."""

    num_tokens: int
    place: int  # of its first token in the pool
    stretches: list[Stretch]
    masks_BK: list[Tensor]  # for each block of queries, which of the keys up to its last query's each one sees

    @classmethod
    def of(cls, chunk: Chunk[Row], sliding_window: int | None, device: torch.device) -> _Prompt:
        first = _first_key(chunk.start, sliding_window)
        masks_BK = []
        for start in range(chunk.start, chunk.end, _BLOCK_QUERIES):
            end = min(start + _BLOCK_QUERIES, chunk.end)
            query_B1 = torch.arange(start, end, device=device)[:, None]
            key_K = torch.arange(first, end, device=device)
            mask_BK = key_K <= query_B1
            if sliding_window is not None:
                mask_BK &= query_B1 - key_K <= sliding_window
            masks_BK.append(mask_BK)
        return cls(chunk.end - chunk.start, place(chunk), stretches(chunk.row, first, chunk.end), masks_BK)

    def attend(self, query_LHQD: Tensor, keys_HPD: Tensor, values_HPD: Tensor) -> Tensor:
        """(L, H, Q, D) → (L, H · Q, D)."""
        num_queries = query_LHQD.shape[2]
        query_1NLD = query_LHQD.flatten(1, 2).transpose(0, 1)[None]
        keys_1NKD, values_1NKD = self._joined(keys_HPD, num_queries), self._joined(values_HPD, num_queries)
        blocks = zip(torch.split(query_1NLD, _BLOCK_QUERIES, dim=2), self.masks_BK, strict=True)
        outputs = [
            F.scaled_dot_product_attention(
                query_1NBD,
                keys_1NKD[:, :, : mask_BK.shape[1]],
                values_1NKD[:, :, : mask_BK.shape[1]],
                attn_mask=mask_BK,
            )
            for query_1NBD, mask_BK in blocks
        ]
        return torch.cat([output_1NBD[0].transpose(0, 1) for output_1NBD in outputs])

    def _joined(self, pool_HPD: Tensor, num_queries: int) -> Tensor:
        """The chunk's keys (or values) side by side, (1, H · Q, K, D)."""
        parts = [pool_HPD[:, stretch.start : stretch.end] for stretch in self.stretches]
        joined_HKD = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return joined_HKD.repeat_interleave(num_queries, dim=0)[None] if num_queries > 1 else joined_HKD[None]
