"""Attention of single tokens, each over its own row's keys: those of decoding rows, and the last ones of prompts.

Rows that share a stretch of keys, of a picture perhaps, read it together.

Shapes: R rows, H key/value heads, Q query heads for each of them, D head_dim, K keys, P tokens of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_job.engine.kv_cache import Stretch, stretches
from ray_job.engine.row import Chunk, Row
from ray_job.engine.scores import capped, softmax

# Fewer shared tokens are not worth a group's extra steps.
_MIN_GROUP_KEYS = 64


@dataclass(frozen=True, slots=True)
class Located:
    """One token of a row and where all its keys lie."""

    chunk: Chunk[Row]
    stretches: list[Stretch]


def located(chunk: Chunk[Row], sliding_window: int | None) -> Located:
    """The last token of a chunk and its keys."""
    first = chunk.row.prompt.layout.first_seen(chunk.end - 1, sliding_window)
    return Located(chunk, stretches(chunk.row, first, chunk.end))


def attend_each(
    query_RHQD: Tensor, members: Sequence[Located], keys_HPD: Tensor, values_HPD: Tensor, softcap: float | None
) -> list[Tensor]:
    """One scaled query for each member → (R, H, Q, D), in a list that is empty if there is none."""
    if not members:
        return []
    queries = query_RHQD.transpose(2, 3).unbind()
    pairs = zip(queries, members, strict=True)
    return [
        torch.stack(
            [_attend_one(query_HDQ, each.stretches, keys_HPD, values_HPD, softcap) for query_HDQ, each in pairs]
        )
    ]


def _attend_one(
    query_HDQ: Tensor, found: list[Stretch], keys_HPD: Tensor, values_HPD: Tensor, softcap: float | None
) -> Tensor:
    """One token over its keys, (H, Q, D). Plain products: a fused kernel has nothing to gain from one query."""
    scores = [torch.bmm(keys_HPD[:, stretch.start : stretch.end], query_HDQ) for stretch in found]
    joined_HKQ = scores[0] if len(scores) == 1 else torch.cat(scores, dim=1)
    weights_HKQ = softmax(capped(joined_HKQ, softcap), dim=1)
    output, first = None, 0
    for stretch in found:
        weights_HQK = weights_HKQ[:, first : first + len(stretch)].transpose(1, 2)
        part_HQD = torch.bmm(weights_HQK, values_HPD[:, stretch.start : stretch.end])
        output = part_HQD if output is None else output + part_HQD
        first += len(stretch)
    assert output is not None
    return output


@dataclass(frozen=True, slots=True)
class Group:
    """Decoding rows that share a stretch of keys; the rest of each row's keys is gathered and padded."""

    shared: Stretch
    num_rows: int
    rest_RK: Tensor  # places in the pool
    is_pad_RK: Tensor

    @classmethod
    def of(cls, members: Sequence[Located], shared: Stretch, device: torch.device) -> Group:
        rests = [_without(member.stretches, shared) for member in members]
        width = max(len(rest) for rest in rests)
        # Pads point at a key that is there: what was never written may be NaN, which no weight of 0 undoes.
        padded = [[*rest, *[shared.start] * (width - len(rest))] for rest in rests]
        is_pad = [[column >= len(rest) for column in range(width)] for rest in rests]
        return cls(shared, len(members), torch.tensor(padded, device=device), torch.tensor(is_pad, device=device))

    def attend(self, query_RHQD: Tensor, keys_HPD: Tensor, values_HPD: Tensor, softcap: float | None) -> Tensor:
        """(R, H, Q, D) → the same shape."""
        num_rows, num_heads, num_queries, head_dim = query_RHQD.shape
        num_shared = len(self.shared)
        slots_P = slice(self.shared.start, self.shared.end)
        query_HMD = query_RHQD.transpose(0, 1).reshape(num_heads, -1, head_dim)  # M = R · Q
        shared_HMK = torch.bmm(query_HMD, keys_HPD[:, slots_P].transpose(1, 2))
        query_HRQD = query_RHQD.transpose(0, 1)
        rest_HRQK = torch.matmul(query_HRQD, keys_HPD[:, self.rest_RK].transpose(2, 3))
        shared_HRQK = shared_HMK.view(num_heads, num_rows, num_queries, num_shared)
        rest_HRQK = capped(rest_HRQK, softcap).masked_fill(self.is_pad_RK[:, None], -torch.inf)
        weights_HRQK = softmax(torch.cat((capped(shared_HRQK, softcap), rest_HRQK), dim=-1), dim=-1)
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


def grouped(members: Sequence[Located]) -> tuple[list[tuple[list[Located], Stretch]], list[Located]]:
    """Groups of rows that begin some stretch at the same place, and the rows left alone."""
    readers: dict[int, list[Located]] = {}
    for member in members:
        for stretch in member.stretches:
            readers.setdefault(stretch.start, []).append(member)
    by_start: dict[int, list[Located]] = {}
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
