"""Attention of packed tokens on a GPU: one flash kernel for the own keys of all rows, one more for shared ones.

The same job as `attention.PackedAttention`, in a few launches a layer instead of some for every row. A row's own keys
are one stretch of the pool, so the kernel needs only where it starts and how long it is; keys that a row shares are
read by a second call, and the two parts are joined by their log-sum-exps. Nothing is padded or copied. One split of
the keys per row (`num_splits=1`) makes a row's sums independent of its neighbours.

Built once a step and called once a layer.

Shapes: T packed tokens, S of them with queries, N query heads, H key/value heads, D head_dim, P tokens of the pool,
R rows of a call.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ray_job.engine.kv_cache import KVPool, Stretch, place, stretches
from ray_job.engine.memory import is_fatal
from ray_job.engine.packed_model import AttentionLayer, PackedModel
from ray_job.engine.row import Chunk, Row
from ray_job.redaction.logs import logger_of

logger = logger_of(__name__)

MIN_CAPABILITY = (8, 0)  # the first the flash kernels were written for
_TOLERANCES = {"output": 2e-2, "log-sum-exp": 2e-3}  # of bfloat16, and of float32 sums of it


class Kernel(Protocol):
    """Attention of ragged queries over stretches of a pool of keys; `flash` is the one that is used."""

    def __call__(
        self, query_SND: Tensor, keys_PHD: Tensor, values_PHD: Tensor, call: Call, is_causal: bool
    ) -> tuple[Tensor, Tensor]:
        """→ (S, N, D), and the log-sum-exp of the scores, float32 (S, N)."""


@dataclass(frozen=True, slots=True)
class Call:
    """Which queries read which keys. Row r's queries are `query_starts[r]` to `query_starts[r + 1]`."""

    query_starts: Tensor  # int32 (R + 1,)
    key_starts: Tensor  # int32 (R + 1,), in the pool; the last is not read
    num_keys: Tensor  # int32 (R,); where causal, the last query sees the last key
    most_queries: int
    most_keys: int

    @classmethod
    def of(cls, counts: Sequence[int], keys: Sequence[Stretch], device: torch.device) -> Call:
        def int32(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        starts = [0]
        for count in counts:
            starts.append(starts[-1] + count)
        return cls(
            int32(starts),
            int32([*(stretch.start for stretch in keys), 0]),
            int32([len(stretch) for stretch in keys]),
            max(counts),
            max(len(stretch) for stretch in keys),
        )


class VarlenAttention:
    """Stores a layer's new keys and values and attends. See `PackedAttention` for the arguments and attributes."""

    num_keys_padded = 0

    def __init__(
        self, pool: KVPool, chunks: Sequence[Chunk[Row]], layers: Sequence[AttentionLayer], kernel: Kernel
    ) -> None:
        assert can_run(layers, chunks)
        self._pool = pool
        self._kernel = kernel
        device = pool.keys[0].device
        self.order = sorted(range(len(chunks)), key=lambda index: not chunks[index].is_decode)
        packed = [chunks[index] for index in self.order]
        counts = [chunk.end - chunk.start for chunk in packed]
        ends = torch.tensor(counts).cumsum(0).tolist()
        wanted = [end - 1 for end, chunk in zip(ends, packed, strict=True) if chunk.needs_logits]
        self.wanted_S = torch.tensor(wanted, dtype=torch.int64, device=device)
        places = [place(chunk) + offset for chunk in packed for offset in range(chunk.end - chunk.start)]
        self._places_T = torch.tensor(places, device=device)
        self._all = _Plan.of(packed, counts, device)
        asking = [chunk for chunk in packed if chunk.needs_logits]
        # In the last layer only these have a query; each is its row's last token and sees all of its keys.
        self._asking = _Plan.of(asking, [1] * len(asking), device) if asking else None

    def __call__(self, layer: int, query_SND: Tensor, key_THD: Tensor, value_THD: Tensor) -> Tensor:
        """Rotated query heads of all tokens or of `wanted_S`, keys and values of all → (S, N · D)."""
        self._pool.scatter(layer, self._places_T, key_THD, value_THD)
        if not len(query_SND):
            return query_SND.flatten(1)
        plan = self._all if len(query_SND) == len(key_THD) else self._asking
        assert plan is not None
        keys_PHD, values_PHD = self._pool.keys[layer].transpose(0, 1), self._pool.values[layer].transpose(0, 1)
        output_SND, lse_SN = self._kernel(query_SND, keys_PHD, values_PHD, plan.own, True)
        for rows_Q, call in plan.shared:
            part_QND, part_lse_QN = self._kernel(query_SND[rows_Q], keys_PHD, values_PHD, call, False)
            both_QND, both_lse_QN = joined(output_SND[rows_Q], lse_SN[rows_Q], part_QND, part_lse_QN)
            output_SND[rows_Q], lse_SN[rows_Q] = both_QND, both_lse_QN
        return output_SND.flatten(1)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The calls of a layer: every row's own keys, then first shared stretches, second ones, …"""

    own: Call
    shared: list[tuple[Tensor, Call]]  # with the queries that take part

    @classmethod
    def of(cls, chunks: Sequence[Chunk[Row]], counts: Sequence[int], device: torch.device) -> _Plan:
        found = [stretches(chunk.row, 0, chunk.end) for chunk in chunks]
        shared = []
        for level in range(max(len(each) for each in found) - 1):
            first, rows, members = 0, list[int](), list[int]()
            for index, count in enumerate(counts):
                if level < len(found[index]) - 1:
                    rows += range(first, first + count)
                    members.append(index)
                first += count
            call = Call.of([counts[index] for index in members], [found[index][level] for index in members], device)
            shared.append((torch.tensor(rows, device=device), call))
        return cls(Call.of(counts, [each[-1] for each in found], device), shared)


def can_run(layers: Sequence[AttentionLayer], chunks: Sequence[Chunk[Row]]) -> bool:
    """Whether a kernel computes what is asked: it knows no soft cap, no window that hides keys, no later tokens."""
    longest = max(chunk.end for chunk in chunks)
    if any(layer.softcap is not None or layer.hides_from(longest) for layer in layers):
        return False
    return not any(chunk.row.prompt.layout.has_blocks(chunk.start, chunk.end) for chunk in chunks)


def find_kernel(model: PackedModel) -> Kernel | None:
    """The flash kernel where the model's layers, GPU and dtype have it; else None, for attention by `PackedAttention`.

    Whether it does what is asked of it is tried: older releases of torch have it without all of that.
    """
    device, dtype = model.device, model.dtype
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    if torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return None
    if any(layer.softcap is not None for layer in model.layers):
        return None
    for num_heads, head_dim in sorted({(layer.num_heads, layer.head_dim) for layer in model.layers}):
        wrong = fault(flash, num_heads, head_dim, device, dtype)
        if wrong is not None:
            logger.warning("attention goes on without torch's flash kernel, and slower: %s", wrong)
            return None
    return flash


@torch.inference_mode()
def fault(kernel: Kernel, num_heads: int, head_dim: int, device: torch.device, dtype: torch.dtype) -> str | None:
    """What is wrong with a kernel, tried on rows whose keys lie anywhere in a pool that is not a number elsewhere."""
    keys = [Stretch(300, 420), Stretch(0, 1), Stretch(20, 120), Stretch(200, 207)]
    prompts, decodes = [1, 1, 40, 7], [1, 1, 1, 1]
    generator = torch.Generator().manual_seed(0)

    def random(num_tokens: int, num_heads: int) -> Tensor:
        return torch.randn(num_tokens, num_heads, head_dim, generator=generator).to(device, dtype)

    keys_PHD, values_PHD = torch.full((2, 512, num_heads, head_dim), torch.nan, device=device, dtype=dtype)
    for each in keys:
        keys_PHD[each.start : each.end] = random(len(each), num_heads)
        values_PHD[each.start : each.end] = random(len(each), num_heads)
    for counts, queries_per_key, is_causal in itertools.product((prompts, decodes), (1, 4), (True, False)):
        call = Call.of(counts, keys, device)
        query_SND = random(sum(counts), num_heads * queries_per_key)
        expected = plain(query_SND, keys_PHD, values_PHD, call, is_causal)
        try:
            found = kernel(query_SND, keys_PHD, values_PHD, call, is_causal)
            for (name, bound), value, right in zip(_TOLERANCES.items(), found, expected, strict=True):
                if value.shape != right.shape or not torch.allclose(value, right, bound, bound):
                    return f"its {name} is not what plain products of matrices give"
        except Exception as error:
            if is_fatal(error):
                raise
            return f"{type(error).__name__}: {error}".partition("\n")[0]
    return None


def plain(
    query_SND: Tensor, keys_PHD: Tensor, values_PHD: Tensor, call: Call, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """What a kernel must compute, row by row in float32; the reference of `fault` and of tests."""
    outputs, sums = [], []
    starts, firsts = call.query_starts.tolist(), call.key_starts.tolist()
    repeats = query_SND.shape[1] // keys_PHD.shape[1]
    for row, num_keys in enumerate(call.num_keys.tolist()):
        query_NLD = query_SND[starts[row] : starts[row + 1]].transpose(0, 1).float()
        keys = slice(firsts[row], firsts[row] + num_keys)
        key_NKD = keys_PHD[keys].transpose(0, 1).repeat_interleave(repeats, 0).float()
        value_NKD = values_PHD[keys].transpose(0, 1).repeat_interleave(repeats, 0).float()
        scores_NLK = query_NLD @ key_NKD.transpose(1, 2) / query_SND.shape[-1] ** 0.5
        if is_causal:
            length = query_NLD.shape[1]
            is_later_LK = torch.ones_like(scores_NLK[0], dtype=torch.bool).triu(num_keys - length + 1)
            scores_NLK = scores_NLK.masked_fill(is_later_LK, -torch.inf)
        outputs.append((scores_NLK.softmax(-1) @ value_NKD).transpose(0, 1))
        sums.append(scores_NLK.logsumexp(-1).T)
    return torch.cat(outputs).to(query_SND.dtype), torch.cat(sums)


def flash(
    query_SND: Tensor, keys_PHD: Tensor, values_PHD: Tensor, call: Call, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """torch's flash attention over ragged rows; see `Kernel`."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    found = varlen_attn(
        query_SND,
        keys_PHD,
        values_PHD,
        call.query_starts,
        call.key_starts,
        call.most_queries,
        call.most_keys,
        return_aux=AuxRequest(lse=True),
        window_size=(-1, 0) if is_causal else (-1, -1),
        enable_gqa=query_SND.shape[1] != keys_PHD.shape[1],
        seqused_k=call.num_keys,
        num_splits=1,
    )
    assert isinstance(found, tuple)
    output_SND, lse_NS = found
    return output_SND, lse_NS.T


def joined(first_SND: Tensor, first_lse_SN: Tensor, second_SND: Tensor, second_lse_SN: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys, and its log-sum-exp, from those over each."""
    lse_SN = torch.logaddexp(first_lse_SN, second_lse_SN)
    first_share_SN1 = (first_lse_SN - lse_SN).exp()[..., None]
    second_share_SN1 = (second_lse_SN - lse_SN).exp()[..., None]
    return (first_SND * first_share_SN1 + second_SND * second_share_SN1).to(first_SND.dtype), lse_SN
