"""Decoding on a GPU as one static shape: recorded once as a CUDA graph, then one launch a step.

A decoding step has some fifteen small kernels a layer, and launching one takes a CPU longer than the GPU needs to run
it. So a step that only decodes is padded to one of a few numbers of rows, and all that differs between such steps lies
in one small tensor, copied to the GPU at once. Padding rows read and write the pool's spare place.

It computes what a step with `varlen.VarlenAttention` computes: attention over every row's own keys and over each
stretch it shares, joined by their log-sum-exps.

Shapes: R decoding rows, B rows with padding, F numbers that tell about a row, S queries, N query heads,
H key/value heads, D head_dim, A axes of positions, W width of embeddings, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_job.engine.kv_cache import KVPool, place, stretches
from ray_job.engine.memory import is_out_of_memory
from ray_job.engine.packed_model import PackedModel
from ray_job.engine.row import Chunk, Row
from ray_job.engine.varlen import Call, Kernel, joined
from ray_job.redaction.logs import logger_of

logger = logger_of(__name__)

Replay: TypeAlias = Callable[[Tensor], Tensor]
"""Numbers of padded rows, int64 (F, B) on the CPU → their logits, float32 (B, V), good until the next call."""

_MAX_SHARED = 2  # stretches a row shares: a system prompt, and a picture after it
_WARM_UPS = 2  # what is made once, at a first call, must not be made while recording


class DecodeGraphs:
    """Logits of steps that only decode.

    Args:
        model: see `PackedModel`; on a GPU it must not wait for the device anywhere between its layers.
        pool: of keys and values. The graphs point into its memory: make new ones for another pool.
        kernel: attention; a recorded one must not wait for the device either.
    """

    def __init__(self, model: PackedModel, pool: KVPool, kernel: Kernel) -> None:
        self._model = model
        self._pool = pool
        self._kernel = kernel
        self._replays: dict[tuple[int, ...], Replay] = {}
        self._memory: Any = None  # one for all graphs, as they never run at the same time
        self._is_broken = False

    def logits(self, chunks: Sequence[Chunk[Row]], tokens: Sequence[int]) -> Tensor | None:
        """float32 (R, V) of decoding chunks and their rows' newest tokens, good until the next call.

        None where it must be done the plain way: rows share more stretches than provided for, or this GPU, its driver
        or torch cannot record. Nothing is computed then.
        """
        if self._is_broken:
            return None
        found = [stretches(chunk.row, 0, chunk.end) for chunk in chunks]
        num_shared = max(len(each) for each in found) - 1
        if num_shared > _MAX_SHARED:
            return None
        rows = []
        for chunk, token, each in zip(chunks, tokens, found, strict=True):
            numbers = [token, chunk.start + chunk.row.prompt.layout.offset, int(chunk.row.is_long), place(chunk)]
            for stretch in (each[-1], *each[:-1]):
                numbers += [stretch.start, len(stretch)]
            rows.append(numbers + [self._pool.spare, 0] * (num_shared - len(each) + 1))
        spare = self._pool.spare
        padding = [0, 0, 0, spare, spare, 1] + [spare, 0] * num_shared
        padded = rows + [padding] * (_padded(len(rows)) - len(rows))
        numbers_FB = torch.tensor(padded).T.contiguous()
        shape = tuple(numbers_FB.shape)
        replay = self._replays.get(shape) or self._prepared(numbers_FB)
        if replay is None:
            return None
        self._replays[shape] = replay
        return replay(numbers_FB)[: len(rows)]

    def _prepared(self, numbers_FB: Tensor) -> Replay | None:
        """A way to compute rows of this shape. Recording runs these a few times, which puts the same keys in place."""
        if self._model.device.type != "cuda":
            return self._compute
        try:
            return self._recorded(numbers_FB)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            logger.warning("decoding goes on without CUDA graphs, and slower: %s", error)
            self._is_broken = True
            return None

    def _recorded(self, numbers_FB: Tensor) -> Replay:
        device = self._model.device
        input_FB = numbers_FB.to(device)
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self._compute(input_FB)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            output_BV = self._compute(input_FB)
        self._memory = graph.pool()

        def replay(numbers_FB: Tensor) -> Tensor:
            input_FB.copy_(numbers_FB.pin_memory(), non_blocking=True)
            graph.replay()
            return output_BV

        return replay

    def _compute(self, numbers_FB: Tensor) -> Tensor:
        ids_B, positions_B, is_long_B, places_B, *keys = numbers_FB.unbind()
        pairs = zip(keys[::2], keys[1::2], strict=True)
        own, *shared = [_Keys(starts_B, counts_B, self._pool.num_tokens) for starts_B, counts_B in pairs]

        def attend(layer: int, query_BND: Tensor, key_BHD: Tensor, value_BHD: Tensor) -> Tensor:
            pool = self._pool
            pool.scatter(layer, places_B, key_BHD, value_BHD)
            keys_PHD, values_PHD = pool.keys[layer].transpose(0, 1), pool.values[layer].transpose(0, 1)
            output_BND, lse_BN = self._kernel(query_BND, keys_PHD, values_PHD, own.call, True)
            for each in shared:
                part = self._kernel(query_BND, keys_PHD, values_PHD, each.call, False)
                both_BND, both_lse_BN = joined(output_BND, lse_BN, *part)
                output_BND = torch.where(each.is_there_B[:, None, None], both_BND, output_BND)
                lse_BN = torch.where(each.is_there_B[:, None], both_lse_BN, lse_BN)
            return output_BND.flatten(1)

        model = self._model
        wanted_B = torch.arange(len(ids_B), device=ids_B.device)
        embeds_BW = model.embed_tokens(ids_B)
        positions_AB = positions_B.expand(model.num_axes, -1)
        return model.logits(model.forward(embeds_BW, positions_AB, is_long_B.bool(), wanted_B, attend))


class _Keys:
    """One stretch of keys for every row; a row without one reads a key that is there, and drops what comes of it."""

    def __init__(self, starts_B: Tensor, counts_B: Tensor, most_keys: int) -> None:
        size = len(starts_B)
        self.is_there_B = counts_B > 0
        self.call = Call(
            query_starts=torch.arange(size + 1, dtype=torch.int32, device=starts_B.device),
            key_starts=F.pad(starts_B.int(), (0, 1)),
            num_keys=counts_B.clamp_min(1).int(),
            most_queries=1,
            most_keys=most_keys,
        )


def _padded(num_rows: int) -> int:
    """The next number of rows that is recorded: 1, 2, 4 and multiples of 8."""
    return next((size for size in (1, 2, 4) if num_rows <= size), -(-num_rows // 8) * 8)
