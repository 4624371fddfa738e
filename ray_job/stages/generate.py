"""The stateful worker: loads the model once, takes batches of prepared rows, gives back batches of answers.

Ray Data holds a pool of these and calls one with several batches at a time; all of them feed one engine. It imports
and runs without Ray.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import asdict
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_job.arrow.values import python_values
from ray_job.engine.loop import EngineLoop
from ray_job.errors import ErrorCode, ModelError, RowError, Stage
from ray_job.metrics import catalog
from ray_job.metrics.publisher import Publisher, Readings
from ray_job.models.engines import ChosenEngine, choose_engine
from ray_job.models.placement import Placement
from ray_job.rows import (
    PARSED,
    PICTURES,
    POSITION,
    PREPARE_S,
    QUESTION_INDEX,
    ROW_ID,
    SAMPLES,
    WORKER,
    FinishReason,
    Picture,
    Result,
    Sample,
    Status,
    error_record,
    result_schema,
)
from ray_job.spec import GenerationParams, JobSpec
from ray_job.stages.poison import Block, DurableStore, PoisonSearch, ReadersWriterLock
from ray_job.structured.values import parsed_value

Place: TypeAlias = Callable[[JobSpec, DurableStore | None], Placement]
"""Says, in the actor's own process, where it computes and with how much; the store is shared with the other actors."""


class GenerateActor:
    """Answers prepared rows.

    Args:
        spec: the job.
        schema: of the output (`rows.output_schema`).
        should_stop: asked before rows are taken on; once true they are left for another run.
        store: where blocks in flight are recorded, so that rows that kill this process are found (`poison.py`).
        place: what this actor computes with; by default this process's machine, the whole of it.
    """

    def __init__(
        self,
        spec: JobSpec,
        schema: pa.Schema,
        should_stop: Callable[[], bool] = lambda: False,
        store: DurableStore | None = None,
        place: Place | None = None,
    ) -> None:
        self._should_stop = should_stop
        self._schema = schema
        started_s = time.monotonic()
        placement = None if place is None else place(spec, store)
        chosen = _load(spec, store, placement)
        self._engine = chosen.engine
        self._engine_record = {"engine": chosen.name, "engine_reason": chosen.reason}
        self._loop = EngineLoop(self._engine)
        self._poison = PoisonSearch(store, Stage.GENERATE, spec.limits.row_deadline_s)
        self._lock = ReadersWriterLock()
        self._watch = ExitStack()
        self._watch.enter_context(self._poison.watch(lambda: self._loop.busy_since_s))
        self._name = uuid.uuid4().hex[:8]
        self._load_s = time.monotonic() - started_s
        self._threads = 0 if placement is None else placement.threads
        self._prepare_s = 0.0
        self._outcomes: Counter[tuple[catalog.Metric, str | None]] = Counter()
        self._publisher = Publisher.where_ray_runs(self._readings, self._name)

    async def __call__(self, table: pa.Table) -> AsyncIterator[pa.Table]:
        """Rows of `rows.prepared_schema` → rows of `rows.result_schema`, in the order given."""
        if self._should_stop():
            yield result_schema(self._schema).empty_table()
            return
        rows = _PreparedRows(table)
        if not rows.samples:
            yield self._finished(rows, [])
            return
        async with self._lock.shared():
            block = self._poison.begin(table.column(POSITION).to_numpy(), rows.sample_ids)
            results = None if block.was_in_flight else await self._answer(rows, block)
        if results is None:
            async with self._lock.exclusive():
                results = await self._answer(rows, block)
        self._poison.finish(block)
        yield self._finished(rows, results)

    async def _answer(self, rows: _PreparedRows, block: Block) -> list[Result]:
        """The block's results: those of rows found to be deadly are errors."""
        results = []
        for row in block.poisoned:
            rows.tries[rows.samples[row.place].key] = row.tries
            results.append(Result(rows.samples[row.place].key, error=self._poison.error(row)))
        for piece in block.pieces():
            samples = rows.samples[piece.start : piece.stop]
            rows.tries.update((sample.key, piece.tries) for sample in samples)
            try:
                futures = self._loop.submit(samples)
                results += await asyncio.gather(*(asyncio.wrap_future(future) for future in futures))
            except Exception as error:  # not one row's failure: an engine that raises is broken
                text = f"the engine failed: {type(error).__name__}: {error}"
                self._poison.end_process(RowError(ErrorCode.GENERATION_FAILED, text, Stage.GENERATE))
                raise
        return results

    def generate(self, table: pa.Table, schema: pa.Schema | None = None) -> pa.Table:
        """The same without an event loop: for previews, tests and benchmarks.

        Args:
            table: rows of `rows.prepared_schema`.
            schema: of the output, where it is not the actor's own.
        """
        rows = _PreparedRows(table)
        futures: list[Future[Result]] = self._loop.submit(rows.samples)
        results = [future.result() for future in futures]
        return self._finished(rows, results, schema)

    def close(self) -> None:
        """Ends the actor's threads after the work at hand, so that the model can go."""
        self._watch.close()
        self._loop.close()
        if self._publisher is not None:
            self._publisher.close()

    def _finished(self, rows: _PreparedRows, results: Sequence[Result], schema: pa.Schema | None = None) -> pa.Table:
        """The block's output, with what this actor has done so far."""
        self._prepare_s += rows.prepare_s
        times = {"prepare_s": self._prepare_s, "load_s": self._load_s, "idle_s": self._loop.idle_s}
        done = {**times, "threads": self._threads, **asdict(self._engine.stats())}
        news = {"actor": self._name, "done": done, **self._engine_record}
        self._outcomes = self._outcomes + rows.outcomes(results)  # another thread reads it
        return rows.with_results(results, schema or self._schema, json.dumps(news))

    def _readings(self) -> Readings:
        """This actor's numbers, for `metrics`."""
        stats, slots = asdict(self._engine.stats()), self._engine.slots()
        seconds = {**stats, "prepare_s": self._prepare_s, "idle_s": self._loop.idle_s}
        return {
            **self._outcomes,
            **{(metric, None): stats[name] for name, metric in catalog.ENGINE_COUNTERS.items()},
            **{(catalog.STAGE_SECONDS, stage): seconds[f"{stage}_s"] for stage in catalog.STAGES},
            (catalog.QUEUE_ROWS, None): max(0, self._loop.num_rows - slots.used),
            (catalog.RUNNING_ROWS, None): slots.used,
            (catalog.SLOTS, None): slots.total,
        }


def _load(spec: JobSpec, store: DurableStore | None, placement: Placement | None) -> ChosenEngine:
    """The engine and its model.

    Raises:
        ModelError: it does not load, or this actor's process died of it twice.
    """
    if store is None:
        return choose_engine(spec, placement)
    block = Block(store, f"load/{store.worker}", [spec.model.path])
    if block.poisoned:
        raise ModelError(
            f"{spec.model.path}: the actor's process died while loading it, {block.poisoned[0].tries} times: out of "
            "memory, or a crash in native code. Give the actor more memory, or load a smaller model"
        )
    next(block.pieces())
    chosen = choose_engine(spec, placement)
    block.finish()
    return chosen


class _PreparedRows:
    """A prepared table taken apart into samples, and put together again with their results."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._row_indices: list[int] = []  # of each sample, good or failed
        self._question_indices: list[int] = []
        self._errors: dict[int, dict[str, Any]] = {}  # by position among all samples
        self.tries: dict[int, int] = {}  # by the same; one where nothing is said
        self.samples: list[Sample] = []  # the good ones; `key` is the position among all samples
        self.prepare_s: float = pc.sum(table.column(PREPARE_S)).as_py() or 0.0
        pictures = _pictures(table)
        for row_index, row_samples in enumerate(table.column(SAMPLES).to_pylist()):
            for sample in row_samples:
                self._add(row_index, sample, pictures[row_index])

    def _add(self, row_index: int, sample: dict[str, Any], pictures: Sequence[Picture]) -> None:
        position = len(self._row_indices)
        self._row_indices.append(row_index)
        self._question_indices.append(sample[QUESTION_INDEX])
        if sample["error"] is not None:
            self._errors[position] = sample["error"]
            return
        try:
            params = _params(sample["params"])
            self.samples.append(Sample(position, sample["input_ids"], pictures, params))
        except BaseException as error:  # of this row, or it goes on from there
            (row_id,) = python_values(self._table.column(ROW_ID).slice(row_index, 1))
            self._errors[position] = error_record(RowError.of(error, Stage.GENERATE, row_id))

    def outcomes(self, results: Sequence[Result]) -> Counter[tuple[catalog.Metric, str | None]]:
        """How the samples ended, as metrics count it."""
        codes = [error["code"] for error in self._errors.values()]
        codes += [str(result.error.code) for result in results if result.error is not None]
        counts: Counter[tuple[catalog.Metric, str | None]] = Counter((catalog.ERRORS, code) for code in codes)
        counts[catalog.ROWS, str(Status.ERROR)] = len(codes)
        counts[catalog.ROWS, str(Status.OK)] = len(self._row_indices) - len(codes)
        counts[catalog.PROMPT_TOKENS, None] = sum(result.prompt_tokens for result in results)
        counts[catalog.COMPLETION_TOKENS, None] = sum(result.completion_tokens for result in results)
        return counts

    @property
    def sample_ids(self) -> Sequence[Any]:
        """The row's id of each of `samples`."""
        indices = [self._row_indices[sample.key] for sample in self.samples]
        return python_values(self._table.column(ROW_ID).take(pa.array(indices)))

    def with_results(self, results: Sequence[Result], output: pa.Schema, worker: str) -> pa.Table:
        """One row per sample of the output's schema, as it travels; `worker` stands in the first."""
        schema = result_schema(output)
        if not self._row_indices:
            return schema.empty_table()
        by_position = {result.key: result for result in results}
        records = [self._record(position, by_position) for position in range(len(self._row_indices))]
        if PARSED in output.names:
            type_ = output.field(PARSED).type
            records = [{**record, PARSED: _parsed(record, type_)} for record in records]
        columns: list[Any] = []
        for field in schema:
            if field.name == WORKER:
                columns.append(pa.array([worker, *[None] * (len(records) - 1)], field.type))
            elif field.name == QUESTION_INDEX:
                columns.append(pa.array(self._question_indices, field.type))
            elif field.name in records[0]:
                columns.append(pa.array([record[field.name] for record in records], field.type))
            else:
                columns.append(self._table.column(field.name).take(pa.array(self._row_indices)))
        return pa.table(columns, schema=schema)

    def _record(self, position: int, by_position: dict[int, Result]) -> dict[str, Any]:
        """The result columns of one sample."""
        record: dict[str, Any] = {
            "generated_text": None,
            "finish_reason": None,
            "usage": None,
            "status": str(Status.ERROR),
            "error": self._errors.get(position),
            "attempts": self.tries.get(position, 1),
            "latency_ms": None,
        }
        if record["error"] is not None:
            return record
        result = by_position[position]
        if result.error is not None:
            return {**record, "error": error_record(result.error)}
        return {
            **record,
            "generated_text": result.text,
            "finish_reason": str(result.finish_reason),
            "usage": {"prompt_tokens": result.prompt_tokens, "completion_tokens": result.completion_tokens},
            "status": str(Status.OK),
            "latency_ms": result.latency_ms,
        }


@lru_cache(maxsize=64)  # samples mostly have the same
def _params(text: str) -> GenerationParams:
    return GenerationParams.model_validate_json(text)


def _parsed(record: dict[str, Any], type_: pa.DataType) -> Any:
    """An answer as a value of a type; None where there is none or it was cut, even where it is JSON so far."""
    was_ended = record["finish_reason"] == str(FinishReason.STOP)
    return parsed_value(record["generated_text"], type_) if was_ended else None


def _pictures(table: pa.Table) -> list[list[Picture]]:
    """Each row's pictures, their arrays still where Arrow holds them."""
    lists = table.column(PICTURES).combine_chunks()
    if isinstance(lists, pa.ChunkedArray):
        lists = pa.concat_arrays(lists.chunks)
    structs = lists.values
    digests, arrays = structs.field("digest").to_pylist(), _arrays(structs.field("arrays"))
    pictures = [Picture(digest, own) for digest, own in zip(digests, arrays, strict=True)]
    return [pictures[start:stop] for start, stop in itertools.pairwise(lists.offsets.to_pylist())]


def _arrays(lists: pa.ListArray) -> list[dict[str, npt.NDArray[Any]]]:
    """The arrays of each picture, by name."""
    structs = lists.values
    names, dtypes, shapes = (structs.field(name).to_pylist() for name in ("name", "dtype", "shape"))
    data = structs.field("data")

    def array(index: int) -> npt.NDArray[Any]:
        return np.frombuffer(data[index].as_buffer(), dtype=dtypes[index]).reshape(shapes[index])

    offsets = itertools.pairwise(lists.offsets.to_pylist())
    return [{names[index]: array(index) for index in range(start, stop)} for start, stop in offsets]
