"""Continuous batching: a finished row leaves and the next one enters at once. schedule → run → retire.

Equal to `static.py` token for token in float32. It knows rows, tokens and pictures; which rows run is the scheduler's
business (`scheduler.py`), where keys lie and how they are read is the pool's (`kv_cache.py`, `attention.py`).

Shapes: T packed tokens of a step, S of them whose next token is wanted, D hidden size, W width of embeddings,
A axes of positions, V vocabulary, L tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ray_job.engine.attention import PackedAttention
from ray_job.engine.choosing import choose
from ray_job.engine.decode_graph import DecodeGraphs
from ray_job.engine.duplicates import Duplicates
from ray_job.engine.encoder import PictureEncoder
from ray_job.engine.interface import Slots, Vocabulary
from ray_job.engine.kv_cache import KVPool
from ray_job.engine.masks import Masks
from ray_job.engine.memory import free_bytes, is_fatal, is_out_of_memory, pool_tokens, release_memory
from ray_job.engine.packed_model import PackedModel
from ray_job.engine.row import Chunk
from ray_job.engine.running import RunningRow
from ray_job.engine.scheduler import Limits, Scheduler
from ray_job.engine.stats import EngineStats, Meter
from ray_job.engine.varlen import Kernel, VarlenAttention, can_run, find_kernel
from ray_job.engine.vision_cache import VisionCache
from ray_job.errors import ErrorCode, RowError, Stage
from ray_job.redaction.logs import logger_of
from ray_job.rows import Result, Sample

logger = logger_of(__name__)


class ContinuousEngine:
    """An `Engine` (interface.py) whose slots never drain while rows wait.

    Args:
        model: see `PackedModel`; in evaluation mode, on its device.
        vocabulary: of the model's tokenizer.
        max_slots: most rows that run together.
        max_tokens: KV pool in tokens, taken from memory at the first step; the longest row that can be run.
            None: what `memory.pool_tokens` gives to a process that has the device for itself, one step's at least.
        step_tokens: most tokens a step computes; a longer prompt takes several steps. Fewer make
            smaller matrix products, which are slower for each token. Only a prompt's block of tokens that see one
            another may be longer.
        max_crops: most crops of pictures that a step encodes; one picture is always allowed. None: 8, or 2 on a CPU,
            whose cache then holds what a layer passes to the next.
        vision_cache_bytes: of pictures' features kept after their rows are done.
        prefix_sharing: read the keys of a prompt's beginning where another row computed them.
        min_shared_tokens: shorter common beginnings are computed again.
        answer_duplicates: run equal samples once.
        max_remembered_answers: finished answers kept for duplicates that come later.
        row_deadline_s: a row that has run for longer fails.
        kernel: attention over ragged rows. None: torch's flash kernel where the GPU has one, else none.
    """

    def __init__(
        self,
        model: PackedModel,
        vocabulary: Vocabulary,
        *,
        max_slots: int = 32,
        max_tokens: int | None = None,
        step_tokens: int = 1024,
        max_crops: int | None = None,
        vision_cache_bytes: int = 256 * 2**20,
        prefix_sharing: bool = True,
        min_shared_tokens: int = 64,
        answer_duplicates: bool = True,
        max_remembered_answers: int = 1024,
        row_deadline_s: float | None = None,
        kernel: Kernel | None = None,
    ) -> None:
        self._model = model
        self._row_deadline_s = row_deadline_s
        self._vocabulary = vocabulary
        self._meter = Meter()
        self._masks = Masks(vocabulary.forms, self._meter)
        self._scheduler = Scheduler[RunningRow](
            max_slots=max_slots,
            max_tokens=max_tokens or pool_tokens(model, free_bytes(model.device), step_tokens),
            step_tokens=step_tokens,
            min_shared=min_shared_tokens if prefix_sharing else None,
        )
        self._pool: KVPool | None = None
        self._graphs: DecodeGraphs | None = None
        self._kernel = kernel or find_kernel(model)
        max_crops = max_crops or (8 if model.device.type == "cuda" else 2)
        self._encoder = PictureEncoder(model, VisionCache(vision_cache_bytes), max_crops, self._meter)
        self._duplicates = Duplicates(max_remembered_answers if answer_duplicates else None)
        self._done: list[Result] = []  # what finished since `step` last returned
        self._before_shortage: _LimitsBefore | None = None

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_rows or bool(self._done)

    def add(self, sample: Sample) -> None:
        remembered = self._duplicates.remembered(sample)
        if remembered is not None:
            self._done.append(remembered)
        elif self._duplicates.leads(sample):
            try:
                self._scheduler.add(self._row(sample))
            except RowError as error:
                self._report(sample, Result(key=sample.key, error=error))

    @torch.inference_mode()
    def step(self) -> list[Result]:
        """Schedule, run, retire: at most `step_tokens` tokens, and pictures of rows that come next."""
        shortage = None
        if self._row_deadline_s is not None:
            self._fail_overdue(self._row_deadline_s)
        try:
            chunks = self._schedule()
            self._retire(self._run(chunks))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            shortage = str(error)
        if shortage is not None:  # outside the handler, whose traceback holds the step's tensors
            self._back_off(shortage)
        done, self._done = self._done, []
        return done

    def stats(self) -> EngineStats:
        """What was done so far."""
        return self._meter.stats(
            put_back_rows=self._scheduler.num_put_back,
            prefix_tokens_reused=self._scheduler.reused_tokens,
            duplicate_rows=self._duplicates.num_found,
            max_tokens=self._scheduler.max_tokens,
            token_ceiling=self._scheduler.limits.ceiling,
        )

    def slots(self) -> Slots:
        """See `Engine.slots`."""
        return Slots(len(self._scheduler.running), self._scheduler.max_slots)

    def _row(self, sample: Sample) -> RunningRow:
        """A row for the queue. Raises RowError for a sample that can never run."""
        try:
            row = RunningRow.of(sample, self._vocabulary, self._model)
        except Exception as error:  # of the model, about a prompt it cannot place, too
            raise _generation_failed(error) from None
        if row.max_tokens > self._scheduler.max_tokens:
            raise _out_of_memory(f"{row.max_tokens} tokens, and the KV pool holds {self._scheduler.max_tokens}")
        return row

    def _schedule(self) -> list[Chunk[RunningRow]]:
        """Admits rows, encodes pictures they need, and plans the step."""
        scheduler = self._scheduler
        with self._meter.time("schedule_s"):
            for row in scheduler.admit():
                row.is_ready = not row.missing_pictures()
                row.started_s = row.started_s or time.monotonic()
                if row.span is not None:  # else put back, with a row it depends on
                    self._go_on(row, row.answer.begin)
        self._meter.add(steps=1)
        if scheduler.num_waiting:
            self._meter.add(waiting_slots=scheduler.max_slots, waiting_slots_used=len(scheduler.running))
        for row, error in self._encoder.serve(list(scheduler.running)).items():
            if row.span is not None:  # else put back, as a row it depends on failed just now
                self._fail(row, error)
        return scheduler.plan()

    def _run(self, chunks: Sequence[Chunk[RunningRow]]) -> list[_Computed]:
        """Computes chunks; where that fails, each alone, so that only the row at fault is lost."""
        if not chunks:
            return []
        try:
            return self._compute(chunks)
        except Exception as error:
            if is_out_of_memory(error) or is_fatal(error):
                raise
            if len(chunks) == 1:
                self._fail(chunks[0].row, error)
                return []
            logger.warning("a step of %d rows failed (%s)", len(chunks), error)
        # A row may be gone by its turn: put back, as the one whose prefix it shares failed.
        return [computed for chunk in chunks if chunk.row.span is not None for computed in self._run([chunk])]

    def _compute(self, chunks: Sequence[Chunk[RunningRow]]) -> list[_Computed]:
        """1 embed, 2 run the decoder, 3 logits of rows with no token left to compute, 4 their next tokens."""
        only_decodes = all(chunk.is_decode for chunk in chunks)
        kernel = self._kernel_for(chunks)
        if only_decodes and kernel is not None:
            computed = self._decode(chunks, kernel)
            if computed is not None:
                return computed
        with self._meter.time("decode_s" if only_decodes else "prefill_s"):
            attention = self._attention(chunks, kernel)
            packed = [chunks[index] for index in attention.order]
            asked = [chunk.row for chunk in packed if chunk.needs_logits]
            answers = [row.answer for row in asked]
            masks = self._masks.start(answers)
            embeds_TW = self._embed(packed)
            hidden_SD = self._model.forward(embeds_TW, *self._positions(packed), attention.wanted_S, attention)
            newest = choose(self._model.logits(hidden_SD), answers, masks) if asked else []
            tokens = dict(zip(asked, newest, strict=True))
        self._count(chunks, attention.num_keys_padded)
        return [_Computed(chunk, tokens.get(chunk.row)) for chunk in packed]

    def _decode(self, chunks: Sequence[Chunk[RunningRow]], kernel: Kernel) -> list[_Computed] | None:
        """A step that only decodes, in one launch; None where there is no graph for it."""
        with self._meter.time("decode_s"):
            pool = self._current_pool()
            if self._graphs is None:
                self._graphs = DecodeGraphs(self._model, pool, kernel)
            answers = [chunk.row.answer for chunk in chunks]
            masks = self._masks.start(answers)
            logits_RV = self._graphs.logits(chunks, [answer.token_ids[-1] for answer in answers])
            if logits_RV is None:
                return None
            tokens = choose(logits_RV, answers, masks)
        self._count(chunks)
        return [_Computed(chunk, token) for chunk, token in zip(chunks, tokens, strict=True)]

    def _count(self, chunks: Sequence[Chunk[RunningRow]], num_keys_padded: int = 0) -> None:
        """Notes what a step computed."""
        decodes = [chunk for chunk in chunks if chunk.is_decode]
        prompts = [chunk for chunk in chunks if not chunk.is_decode]
        num_keys = sum(chunk.end for chunk in decodes)
        self._meter.add(
            decode_tokens=len(decodes),
            keys_read=num_keys + num_keys_padded,
            keys_padded=num_keys_padded,
            prefill_tokens=sum(chunk.end - chunk.start for chunk in prompts),
            prefill_pairs=sum((chunk.end - chunk.start) * (chunk.start + chunk.end + 1) // 2 for chunk in prompts),
        )
        if not prompts:
            self._meter.add(decode_steps=1, decode_keys=num_keys)

    def _embed(self, packed: Sequence[Chunk[RunningRow]]) -> Tensor:
        """(T, W). Answers' tokens, which come first, are embedded together."""
        newest = [chunk.row.answer.token_ids[-1] for chunk in packed if chunk.is_decode]
        embeds = [self._model.embed(torch.tensor(newest))] if newest else []
        embeds += [self._model.embed(*chunk.row.tokens(chunk.start, chunk.end)) for chunk in packed[len(newest) :]]
        return torch.cat(embeds)

    def _positions(self, packed: Sequence[Chunk[RunningRow]]) -> tuple[Tensor, Tensor]:
        """Each token's position on each axis (A, T), and which rotary factors it takes (T,)."""
        decodes = [chunk.start + chunk.row.prompt.layout.offset for chunk in packed if chunk.is_decode]
        positions = [np.tile(np.array(decodes), (self._model.num_axes, 1))] if decodes else []
        positions += [chunk.row.prompt.layout.positions(chunk.start, chunk.end) for chunk in packed[len(decodes) :]]
        is_long = [chunk.row.is_long for chunk in packed for _ in range(chunk.start, chunk.end)]
        device = self._model.device
        positions_AT = torch.from_numpy(np.concatenate(positions, axis=1))
        return positions_AT.to(device), torch.tensor(is_long, device=device)

    def _attention(
        self, chunks: Sequence[Chunk[RunningRow]], kernel: Kernel | None
    ) -> PackedAttention | VarlenAttention:
        if kernel is not None:
            return VarlenAttention(self._current_pool(), chunks, self._model.layers, kernel)
        return PackedAttention(self._current_pool(), chunks, self._model.layers)

    def _kernel_for(self, chunks: Sequence[Chunk[RunningRow]]) -> Kernel | None:
        """The ragged kernel where it can run them."""
        return self._kernel if self._kernel is not None and can_run(self._model.layers, chunks) else None

    def _current_pool(self) -> KVPool:
        """Memory for the scheduler's pool, which is empty whenever its size changes."""
        num_tokens = self._scheduler.pool.capacity
        if self._pool is None or self._pool.num_tokens != num_tokens:
            self._pool, self._graphs = None, None
            release_memory(self._model.device)
            self._pool = KVPool.of(self._model, num_tokens, tokens_first=self._kernel is not None)
        return self._pool

    def _retire(self, computed: Sequence[_Computed]) -> None:
        """Notes what was computed, and lets finished rows go."""
        with self._meter.time("schedule_s"):
            for each in computed:
                self._scheduler.advance(each.chunk)
                each.chunk.row.forget_features()
            for each in computed:
                if each.next_token is not None:
                    self._append(each.chunk.row, each.next_token)

    def _append(self, row: RunningRow, token_id: int) -> None:
        self._go_on(row, lambda: row.answer.append(token_id))

    def _go_on(self, row: RunningRow, take: Callable[[], None]) -> None:
        """Lets an answer take tokens, and its row go if it ends with them."""
        answer = row.answer
        try:
            take()
            result = answer.result() if answer.is_finished else None
        except Exception as error:  # of the detokeniser or the answer's form
            self._fail(row, error)
            return
        if result is not None:
            self._scheduler.finish(row)
            self._meter.add(rows=1, prompt_tokens=len(row.prompt), forced_tokens=answer.num_forced)
            self._report(row.sample, result)
            return
        row.num_tokens = len(row.prompt) + len(answer.token_ids)
        if self._model.is_long(row.num_tokens) != row.is_long:
            self._scheduler.put_back(row, is_long=not row.is_long)  # all its keys are stale

    def _fail(self, row: RunningRow, error: Exception) -> None:
        """Ends a running row with its error."""
        self._scheduler.drop(row)
        failure = error if isinstance(error, RowError) else _generation_failed(error)
        self._report(row.sample, Result(key=row.sample.key, error=failure))

    def _fail_overdue(self, deadline_s: float) -> None:
        """Ends rows that have run for too long."""
        oldest_s = time.monotonic() - deadline_s
        for row in list(self._scheduler.running):
            if row.started_s < oldest_s and row.span is not None:  # else put back, with a row it depends on
                self._fail(row, RowError.overdue(deadline_s, Stage.GENERATE))

    def _report(self, sample: Sample, result: Result) -> None:
        self._done.extend(self._duplicates.fan_out(sample, result))

    def _back_off(self, reason: str) -> None:
        """After a step ran out of memory: every row back, half of everything, and on.

        A row that runs out of memory alone is tried again in ever smaller steps. When no smaller one is left, the row
        is at fault and not the limits, which return to what they were before it.
        """
        self._meter.add(memory_failures=1)
        scheduler, encoder = self._scheduler, self._encoder
        limits, max_crops = scheduler.limits.halved(), max(1, encoder.max_crops // 2)
        if len(scheduler.running) == 1:
            row = scheduler.running[0]
            if self._before_shortage is None or self._before_shortage.row is not row:
                self._before_shortage = _LimitsBefore(row, scheduler.limits, encoder.max_crops)
            if not scheduler.limits.can_lower_step and encoder.max_crops == 1:
                self._fail(row, _out_of_memory(f"alone, in the smallest steps: {reason}"))
                limits, max_crops = self._before_shortage.limits, self._before_shortage.max_crops
        logger.warning("out of memory (%s); going on within %s and %d crops a step", reason, limits, max_crops)
        for row in scheduler.running:
            row.features.clear()
        scheduler.restart(limits)
        encoder.max_crops = max_crops
        encoder.clear()
        self._pool, self._graphs = None, None
        release_memory(self._model.device)


@dataclass(frozen=True, slots=True)
class _Computed:
    """A chunk that was run, and its row's next token if it was the row's last."""

    chunk: Chunk[RunningRow]
    next_token: int | None


@dataclass(frozen=True, slots=True)
class _LimitsBefore:
    """The limits before a row that runs alone ran out of memory."""

    row: RunningRow
    limits: Limits
    max_crops: int


def _generation_failed(error: Exception) -> RowError:
    return RowError(ErrorCode.GENERATION_FAILED, f"{type(error).__name__}: {error}", Stage.GENERATE)


def _out_of_memory(reason: str) -> RowError:
    advice = "lower max_new_tokens, the pictures per row, or their tokens (model.num_crops or model.processor_options)"
    return RowError(
        ErrorCode.OUT_OF_MEMORY, f"the row alone does not fit in memory ({reason}); {advice}", Stage.GENERATE
    )
