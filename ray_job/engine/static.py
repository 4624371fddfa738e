"""Static batching: pad a batch, run it until its last row ends, return the answers.

The reference that every faster engine must equal token for token. A finished row is computed on until its batch ends,
which is what makes it slow. Rows of similar length are batched together, within a budget of tokens. Tokens that an
answer's form leaves no choice about are fed one by one, while others decode.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ray_job.engine.batching import SampleSize, batch_rows
from ray_job.engine.choosing import choose
from ray_job.engine.interface import Slots, Vocabulary
from ray_job.engine.masks import Masks, StepMasks
from ray_job.engine.memory import is_fatal, is_out_of_memory
from ray_job.engine.padded_model import PaddedModel
from ray_job.engine.sequence import Sequence
from ray_job.engine.stats import EngineStats, Meter, Stopwatch
from ray_job.errors import ErrorCode, RowError, Stage
from ray_job.redaction.logs import logger_of
from ray_job.rows import Result, Sample

logger = logger_of(__name__)


class StaticEngine:
    """Static batches over a model.

    Args:
        model: in evaluation mode, on its device.
        vocabulary: of the model's tokenizer.
        max_batch_rows: most rows padded together; a model may allow fewer.
        max_batch_tokens: most of rows × (longest prompt + longest answer); a single row may exceed it.
        row_deadline_s: of a batch that runs for longer, the rows that are not finished fail.
    """

    def __init__(
        self,
        model: PaddedModel,
        vocabulary: Vocabulary,
        *,
        max_batch_rows: int = 16,
        max_batch_tokens: int = 65536,
        row_deadline_s: float | None = None,
    ) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._max_batch_rows = min(max_batch_rows, model.max_rows or max_batch_rows)
        self._max_batch_tokens = max_batch_tokens
        self._row_deadline_s = row_deadline_s or math.inf
        self._waiting: list[Sample] = []
        self._num_running = 0
        self._meter = Meter()
        self._masks = Masks(vocabulary.forms, self._meter)

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    def add(self, sample: Sample) -> None:
        self._waiting.append(sample)

    def step(self) -> list[Result]:
        """Runs one batch to its end."""
        batch = self._next_batch()
        self._num_running = len(batch)
        try:
            return self._answer(batch)
        finally:
            self._num_running = 0

    def stats(self) -> EngineStats:
        return self._meter.stats()

    def slots(self) -> Slots:
        return Slots(self._num_running, self._max_batch_rows)

    def _next_batch(self) -> list[Sample]:
        """The longest waiting samples that fit together: alike in length, so that little is padding."""
        self._waiting.sort(key=lambda sample: (len(sample.input_ids), sample.params.max_new_tokens))
        longest = self._waiting[-self._max_batch_rows :]
        sizes = [SampleSize(len(sample.input_ids), sample.params.max_new_tokens) for sample in longest]
        num_rows = batch_rows(sizes, self._max_batch_rows, self._max_batch_tokens)
        batch = self._waiting[-num_rows:]
        del self._waiting[-num_rows:]
        return batch

    def _answer(self, samples: list[Sample]) -> list[Result]:
        """Generates a batch; one that fails is halved until each row at fault is alone.

        Raises torch.AcceleratorError where the device is lost, which is no row's fault.
        """
        try:
            return self._generate(samples)
        except Exception as error:
            if is_fatal(error):
                raise
            logger.warning("a batch of %d rows failed (%s)", len(samples), error)
            failure = error
        if len(samples) > 1:  # outside the handler, so that the failed batch's tensors are free
            middle = len(samples) // 2
            return self._answer(samples[:middle]) + self._answer(samples[middle:])
        return [Result(key=samples[0].key, error=_row_error(failure))]

    @torch.inference_mode()
    def _generate(self, samples: list[Sample]) -> list[Result]:
        batch = _Batch(samples, self._vocabulary, self._model, self._row_deadline_s, self._meter, self._masks)
        with self._meter.time("vision_s"):
            encoded = self._encode_pictures(samples)
        while not batch.is_over:
            batch.run(encoded)
        prompt_tokens = sum(len(sample.input_ids) for sample in samples)
        self._meter.add(steps=1, rows=len(samples), prompt_tokens=prompt_tokens, forced_tokens=batch.num_forced)
        return batch.results()

    def _encode_pictures(self, samples: list[Sample]) -> dict[bytes, Any]:
        """By digest: each distinct picture is encoded once."""
        pictures = {picture.digest: picture for sample in samples for picture in sample.pictures}
        self._meter.add(pictures_wanted=sum(len(sample.pictures) for sample in samples), pictures_encoded=len(pictures))
        return dict(zip(pictures, self._model.encode_pictures(list(pictures.values())), strict=True))


class _Batch:
    """Samples on their way through the model together."""

    def __init__(
        self,
        samples: list[Sample],
        vocabulary: Vocabulary,
        model: PaddedModel,
        deadline_s: float,
        meter: Meter,
        masks: Masks,
    ) -> None:
        self._rows = [_Row(Sequence(sample, vocabulary, model.max_len)) for sample in samples]
        self._pad_id = vocabulary.pad_id
        self._model = model
        self._deadline_s = deadline_s
        self._meter = meter
        self._masks = masks
        self._started_s = time.monotonic()
        self._has_run = False
        for row in self._rows:
            row.answer.begin()

    @property
    def is_over(self) -> bool:
        """Whether all rows are finished, or overdue."""
        is_overdue = time.monotonic() - self._started_s > self._deadline_s
        return (self._has_run and is_overdue) or all(row.answer.is_finished for row in self._rows)

    @property
    def num_forced(self) -> int:
        """Tokens of the answers that the model was not asked for."""
        return sum(row.answer.num_forced for row in self._rows)

    def run(self, encoded: Mapping[bytes, Any]) -> None:
        """Goes on with everything the rows hold so far, until they are finished or a row's keys are stale."""
        self._has_run = True
        so_far = [replace(row.answer.sample, input_ids=row.answer.all_ids) for row in self._rows]
        for row, sample in zip(self._rows, so_far, strict=True):
            row.num_computed = len(sample.input_ids)
        with Stopwatch(self._meter, "prefill_s") as stopwatch:
            step = self._next_step()

            def newest_tokens(logits_BV: Tensor) -> list[int] | None:
                nonlocal step
                stopwatch.stop()
                self._append_tokens(step, logits_BV)
                if self.is_over or any(self._crosses_next(row) for row in self._rows):
                    return None
                stopwatch.start("decode_s")
                token_ids = [self._pad_id if row.answer.is_finished else row.feed() for row in self._rows]
                step = self._next_step()
                return token_ids

            self._model.generate(so_far, encoded, newest_tokens)

    def results(self) -> list[Result]:
        """The answers; rows that are not finished are overdue."""
        error = RowError.overdue(self._deadline_s, Stage.GENERATE)
        return [
            row.answer.result() if row.answer.is_finished else Result(key=row.answer.sample.key, error=error)
            for row in self._rows
        ]

    def _crosses_next(self, row: _Row) -> bool:
        """Whether the token fed next takes a row from short to long factors: all its keys are then stale."""
        num_tokens = row.num_computed + 1
        is_long = self._model.is_long
        return not row.answer.is_finished and is_long(num_tokens) and not is_long(num_tokens - 1)

    def _next_step(self) -> _Step:
        """Before the model computes: whom it is asked about."""
        rows = [number for number, row in enumerate(self._rows) if row.is_asked]
        return _Step(rows, self._masks.start([self._rows[number].answer for number in rows]))

    def _append_tokens(self, step: _Step, logits_BV: Tensor) -> None:
        if not step.rows:
            return
        answers = [self._rows[number].answer for number in step.rows]
        logits_SV = logits_BV if len(answers) == len(self._rows) else logits_BV[step.rows]
        for answer, token_id in zip(answers, choose(logits_SV, answers, step.masks), strict=True):
            answer.append(token_id)


@dataclass(slots=True)
class _Row:
    """An answer of a batch, and how many tokens of it and its prompt the model was given."""

    answer: Sequence
    num_computed: int = 0

    @property
    def is_asked(self) -> bool:
        """Whether the model was given all there is, and the next token follows from it."""
        answer = self.answer
        return not answer.is_finished and self.num_computed == answer.prompt_len + len(answer.token_ids)

    def feed(self) -> int:
        """The next token that the model has not seen."""
        self.num_computed += 1
        return self.answer.token_ids[self.num_computed - self.answer.prompt_len - 1]


@dataclass(frozen=True, slots=True)
class _Step:
    """One pass of the model: the rows that it is asked about, by number, and their masks."""

    rows: list[int]
    masks: StepMasks | None


def _row_error(failure: Exception) -> RowError:
    if isinstance(failure, RowError):
        return failure
    if is_out_of_memory(failure):
        message = (
            "the row alone does not fit in memory; lower max_new_tokens, the pictures per row, or their tokens "
            "(model.num_crops or model.processor_options)"
        )
        return RowError(ErrorCode.OUT_OF_MEMORY, message, Stage.GENERATE)
    return RowError(ErrorCode.GENERATION_FAILED, f"{type(failure).__name__}: {failure}", Stage.GENERATE)
