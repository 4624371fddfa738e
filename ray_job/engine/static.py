"""Static batching: pad a batch, run it until its last row ends, return the answers.

The reference that every faster engine must equal token for token. A finished row is computed on until its batch ends,
which is what makes it slow. Rows of similar length are batched together, within a budget of tokens.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from ray_job.engine.batching import SampleSize, batch_rows
from ray_job.engine.collate import PaddingSide, collate
from ray_job.engine.interface import Slots, Vocabulary
from ray_job.engine.memory import is_fatal, is_out_of_memory
from ray_job.engine.padded_model import PaddedModel
from ray_job.engine.sampler import next_tokens
from ray_job.engine.sequence import Sequence
from ray_job.engine.stats import EngineStats, Meter
from ray_job.errors import ErrorCode, RowError, Stage
from ray_job.redaction.logs import logger_of
from ray_job.rows import Result, Sample

logger = logger_of(__name__)


class StaticEngine:
    """Static batches over a model.

    Args:
        model: in evaluation mode, on its device.
        vocabulary: of the model's tokenizer.
        max_batch_rows: most rows padded together.
        max_batch_tokens: most of rows × (longest prompt + longest answer); a single row may exceed it.
        padding_side: where shorter rows are padded; the answers are the same.
        row_deadline_s: of a batch that runs for longer, the rows that are not finished fail.
    """

    def __init__(
        self,
        model: PaddedModel,
        vocabulary: Vocabulary,
        *,
        max_batch_rows: int = 16,
        max_batch_tokens: int = 65536,
        padding_side: PaddingSide = "left",
        row_deadline_s: float | None = None,
    ) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._max_batch_rows = max_batch_rows
        self._max_batch_tokens = max_batch_tokens
        self._padding_side: PaddingSide = padding_side
        self._row_deadline_s = row_deadline_s or math.inf
        self._waiting: list[Sample] = []
        self._num_running = 0
        self._meter = Meter()

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
        started_s = time.monotonic()
        sequences = [Sequence(sample, self._vocabulary, self._model.max_len) for sample in samples]
        with self._meter.time("vision_s"):
            features = self._encode_pictures(samples)
        with self._meter.time("prefill_s"):
            running = self._prefill(sequences, features)
        self._meter.add(steps=1, rows=len(samples), prompt_tokens=sum(len(sample.input_ids) for sample in samples))
        while True:
            self._append_tokens(sequences, running.logits_BV)
            is_overdue = time.monotonic() - started_s > self._row_deadline_s
            if is_overdue or all(sequence.is_finished for sequence in sequences):
                return [self._result(sequence) for sequence in sequences]
            if any(self._crosses_now(sequence) for sequence in sequences):
                running = self._prefill(sequences, features)
            else:
                with self._meter.time("decode_s"):
                    self._decode(sequences, running)

    def _result(self, sequence: Sequence) -> Result:
        if sequence.is_finished:
            return sequence.result()
        return Result(key=sequence.sample.key, error=RowError.overdue(self._row_deadline_s, Stage.GENERATE))

    def _encode_pictures(self, samples: list[Sample]) -> list[list[Tensor]]:
        """Features of each row's pictures; every distinct picture is encoded once."""
        batch = collate(samples, self._vocabulary.pad_id)
        pixels = [torch.tensor(picture.arrays["pixels"]) for picture in batch.pictures]
        features = self._model.encode_pictures(pixels) if pixels else []
        return [[features[index] for index in indices] for indices in batch.picture_indices]

    def _prefill(self, sequences: list[Sequence], features: list[list[Tensor]]) -> _Running:
        """Runs everything the rows hold so far into a fresh cache."""
        model, device = self._model, self._model.device
        so_far = [replace(sequence.sample, input_ids=sequence.all_ids) for sequence in sequences]
        batch = collate(so_far, self._vocabulary.pad_id, self._padding_side)
        rows_LD = [
            model.embed_row(torch.tensor(sample.input_ids), row_features)
            for sample, row_features in zip(so_far, features, strict=True)
        ]
        running = _Running(model.new_cache(), batch.attention_mask_BL.to(device), torch.empty(0))
        running.logits_BV = model.forward(
            pad_sequence(rows_LD, batch_first=True, padding_side=self._padding_side),
            position_ids_BL=batch.position_ids_BL.to(device),
            attention_mask_BL=running.attention_mask_BL,
            is_long_B=self._is_long(sequences),
            cache=running.cache,
            last_B=batch.last_columns(self._padding_side).to(device),
        )
        return running

    def _decode(self, sequences: list[Sequence], running: _Running) -> None:
        """Runs each row's newest token; a finished row runs a pad that nobody reads."""
        model, device = self._model, self._model.device
        newest = [self._vocabulary.pad_id if row.is_finished else row.token_ids[-1] for row in sequences]
        positions = [row.prompt_len + len(row.token_ids) - 1 for row in sequences]
        running.attention_mask_BL = pad(running.attention_mask_BL, (0, 1), value=True)
        running.logits_BV = model.forward(
            model.embed_row(torch.tensor(newest))[:, None],
            position_ids_BL=torch.tensor(positions, device=device)[:, None],
            attention_mask_BL=running.attention_mask_BL,
            is_long_B=self._is_long(sequences),
            cache=running.cache,
            last_B=torch.zeros(len(sequences), dtype=torch.int64, device=device),
        )

    def _is_long(self, sequences: list[Sequence]) -> Tensor:
        """Which rows use the long RoPE factors: by each row's own length, never by the batch's."""
        is_long = [self._model.is_long(len(sequence.all_ids)) for sequence in sequences]
        return torch.tensor(is_long, device=self._model.device)

    def _crosses_now(self, sequence: Sequence) -> bool:
        """Whether the newest token takes a row from short to long factors: all its keys are then stale."""
        num_tokens = len(sequence.all_ids)
        return not sequence.is_finished and self._model.is_long(num_tokens) and not self._model.is_long(num_tokens - 1)

    def _append_tokens(self, sequences: list[Sequence], logits_BV: Tensor) -> None:
        tokens = next_tokens(
            logits_BV,
            [sequence.sample.params for sequence in sequences],
            [sequence.num_generated for sequence in sequences],
            [sequence.text_ids if sequence.needs_seen_ids else () for sequence in sequences],
        )
        for sequence, token_id in zip(sequences, tokens, strict=True):
            if not sequence.is_finished:
                sequence.append(token_id)


@dataclass(slots=True)
class _Running:
    """A batch between two steps."""

    cache: Any  # the model's own
    attention_mask_BL: Tensor  # over all columns in the cache
    logits_BV: Tensor  # of each row's last token


def _row_error(failure: Exception) -> RowError:
    if is_out_of_memory(failure):
        message = "the row alone does not fit in memory; lower max_new_tokens, model.num_crops or the pictures per row"
        return RowError(ErrorCode.OUT_OF_MEMORY, message, Stage.GENERATE)
    return RowError(ErrorCode.GENERATION_FAILED, f"{type(failure).__name__}: {failure}", Stage.GENERATE)
