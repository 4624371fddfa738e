"""The CPU stage: a row of the user's columns becomes samples, with pictures decoded and resized to uint8.

It needs no torch and no model, only the processor. Whatever is wrong with a row ends in that row's samples as an
error; nothing a row holds can raise out of here.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import pyarrow as pa

from ray_job.arrow.column_types import with_types
from ray_job.arrow.values import PromptRows, prompt_rows
from ray_job.errors import ErrorCode, RowError, Stage, is_retryable
from ray_job.inputs.pictures.decode import decode, picture_size
from ray_job.inputs.pictures.rules import PictureRules
from ray_job.inputs.source import Source
from ray_job.models.processor import Placeholder, Processor
from ray_job.prompts.conversation import Conversations, template_fields
from ray_job.prompts.parts import Message
from ray_job.rows import (
    ATTEMPTS,
    PICTURES,
    POSITION,
    PREPARE_S,
    QUESTION_INDEX,
    QUESTIONS,
    READ_ERROR,
    ROW_ID,
    SAMPLES,
    array_records,
    error_record,
    kept_names,
    prepared_schema,
    travelling_name,
)
from ray_job.spec import GenerationParams, JobSpec
from ray_job.stages.fetch import RowPictures, picture_bytes, picture_values
from ray_job.stages.frames import FrameOf, RowFrames
from ray_job.stages.pages import RowPages
from ray_job.stages.params import RowParams
from ray_job.stages.poison import DurableStore, PoisonSearch
from ray_job.storage.retrying import Retrying

_MANY_BYTES = 64 * 2**20  # of a block: beyond it, its rows become Python's one at a time


@dataclass
class Prepared:
    """One row, ready to be generated: its samples and the pictures they share."""

    samples: list[dict[str, Any]] = field(default_factory=list)  # values of SAMPLE_TYPE
    pictures: list[dict[str, Any]] = field(default_factory=list)  # values of PICTURE_TYPE
    num_questions: int = 1  # the row has in all; `samples` are those asked for
    num_retries: int = 0  # of what failed for a passing reason


class Preparer:
    """Prepares tables of rows.

    Args:
        spec: with a settled prompt.
        source: tells which columns hold pictures and which are kept.
        processor: the model's.
        max_prompt_tokens: longer prompts are an error.
    """

    def __init__(self, spec: JobSpec, source: Source, processor: Processor, max_prompt_tokens: int) -> None:
        self._spec = spec
        self._source = source
        self._processor = processor
        self._max_prompt_tokens = max_prompt_tokens
        self._params = spec.generation.params
        self._row_params = RowParams(self._params, source.overrides_column)
        self._picture_rules = PictureRules.of(spec.input)
        # The same bytes read by other rules are another picture to an engine that stays loaded.
        self._digest_key = hashlib.blake2b(repr(self._picture_rules).encode(), digest_size=16).digest()
        self._conversations = Conversations(spec.prompt, processor.special_tokens)
        self._pages = RowPages(spec, source, processor.page_size)
        self._frames = RowFrames(spec, source)
        self._poison = PoisonSearch(None, Stage.PREPARE)
        self._busy_since_s: float | None = None  # with one row, by time.monotonic
        self._fetched: RowPictures | None = None  # of the rows at hand

    def with_store(self, store: DurableStore) -> Self:
        """The same for a worker's process: blocks are noted there, so that rows it dies of are found."""
        other = copy.copy(self)
        other._poison = PoisonSearch(store, Stage.PREPARE, self._spec.limits.row_deadline_s)
        return other

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows as read → rows of `rows.prepared_schema`."""
        schema = prepared_schema(self._source.id_field.type, self._source.kept)
        kept = [field.name for field in self._source.kept]
        users = pa.schema([schema.field(name) for name in (ROW_ID, *kept_names(kept).values())])
        seconds = [0.0] * table.num_rows
        rows = self._rows(table, seconds)
        tried = table.column(ATTEMPTS).to_pylist() if ATTEMPTS in table.column_names else [0] * len(rows)
        columns = [table.column(POSITION)]
        columns.append(pa.array([n + row.num_retries for n, row in zip(tried, rows, strict=True)], pa.int32()))
        columns.append(pa.array([row.num_questions for row in rows], pa.int32()))
        read = table.select([ROW_ID, *map(travelling_name, kept)]).rename_columns(users.names)
        columns += with_types(read, users).columns
        columns.append(pa.array([row.samples for row in rows], schema.field(SAMPLES).type))
        columns.append(pa.array([row.pictures for row in rows], schema.field(PICTURES).type))
        columns.append(pa.array(seconds, schema.field(PREPARE_S).type))
        return pa.table(columns, schema=schema)

    def _rows(self, table: pa.Table, seconds: list[float]) -> list[Prepared]:
        """Each row prepared, and how long it took; those found to be deadly are errors."""
        values = self.values(table)
        rows = [Prepared()] * len(values)
        if not values:
            return rows
        block = self._poison.begin(table.column(POSITION).to_numpy(), [row[ROW_ID] for row in values])
        for row in block.poisoned:
            record = error_record(self._poison.error(row))
            rows[row.place] = _failed_row(values[row.place].get(QUESTIONS), record, row.tries - 1)
        with self._poison.watch(lambda: self._busy_since_s):
            for piece in block.pieces():
                with self.fetching(values[piece.start : piece.stop]) as pictures:
                    for place in range(piece.start, piece.stop):
                        self._busy_since_s = started_s = time.monotonic()
                        rows[place] = self.row(values[place])
                        rows[place].num_retries += piece.tries - 1
                        seconds[place] = time.monotonic() - started_s
                        pictures.done(place - piece.start)
        self._busy_since_s = None
        self._poison.finish(block)
        return rows

    def values(self, table: pa.Table) -> Sequence[dict[str, Any]]:
        """What `row` reads of each row."""
        return row_values(table, self._source, self._spec.documents.password_column)

    @contextmanager
    def fetching(self, rows: Sequence[Mapping[str, Any]], headers_only: bool = False) -> Iterator[RowPictures]:
        """While open, the pictures of these rows are fetched side by side, ahead of `row`; for headers no documents."""
        with RowPictures(rows, self._spec, self._source, headers_only) as self._fetched:
            try:
                yield self._fetched
            finally:
                self._fetched = None

    def row(self, row: Mapping[str, Any], *, headers_only: bool = False) -> Prepared:
        """One row; an error of the row becomes an error of its sample.

        With `headers_only` sizes come from headers, and the pictures have no pixels; those whose end is missing are
        decoded all the same, to see whether they can be.
        """
        wanted = row.get(QUESTIONS)  # None: all
        if row.get(READ_ERROR) is not None:
            return _failed_row(wanted, row[READ_ERROR])
        retrying = Retrying(self._spec.limits.max_attempts)
        try:
            return self._prepared(row, wanted, headers_only, retrying)
        except BaseException as error:  # native code raises more than Exception; what is no row's goes on from there
            record = error_record(RowError.of(error, Stage.PREPARE, row.get(ROW_ID)))
            return _failed_row(wanted, record, retrying.num_retries)

    def _prepared(
        self, row: Mapping[str, Any], wanted: Collection[int] | None, headers_only: bool, retrying: Retrying
    ) -> Prepared:
        pictures, placeholders, counts = retrying(lambda: self._pictures(row, headers_only), is_retryable)
        conversations = self._conversations.of_row(row, len(placeholders), counts)
        params = self._row_params.of(row)
        asked = set(range(len(conversations)) if wanted is None else wanted)
        samples = [
            self._sample(index, messages, placeholders, self._seeded(params, row[ROW_ID], index))
            for index, messages in enumerate(conversations)
            if index in asked
        ]
        return Prepared(samples, pictures, len(conversations), retrying.num_retries)

    def _pictures(
        self, row: Mapping[str, Any], headers_only: bool
    ) -> tuple[list[dict[str, Any]], list[Placeholder], list[int]]:
        """The row's pictures as values of PICTURE_TYPE, what stands for each, and how many each part became."""
        values = picture_values(row, self._source)
        limit = self._spec.limits.max_images
        values, counts = self._pages.expanded(values, row, self._bytes_of, limit)
        values, counts = self._frames.expanded(values, counts, self._bytes_of, limit)
        if len(values) > limit:
            raise RowError(ErrorCode.TOO_MANY_IMAGES, f"{len(values)} pictures; limits.max_images is {limit}")
        pictures, placeholders = [], []
        for index, value in enumerate(values, start=1):
            try:
                picture, placeholder = self._picture(row, value, headers_only)
            except RowError as error:
                raise RowError(error.code, f"picture {index}: {error.message}", error.stage) from None
            pictures.append(picture)
            placeholders.append(placeholder)
        return pictures, placeholders, counts

    def _picture(self, row: Mapping[str, Any], value: Any, headers_only: bool) -> tuple[dict[str, Any], Placeholder]:
        """One picture as a value of PICTURE_TYPE, and what stands for it in a prompt."""
        processor = self._processor
        if isinstance(value, FrameOf):
            return self._frame(value, headers_only)
        header = self._pages.header_of(value, row) if headers_only else None
        if header is not None and (placeholder := processor.placeholder(*header[1])) is not None:
            return {"digest": header[0]}, placeholder
        data, limits, rules = self._bytes_of(value), self._spec.limits, self._picture_rules
        is_page = self._pages.holds(data, value)
        content = self._pages.digest(data, value) if is_page else data
        picture: dict[str, Any] = {"digest": hashlib.blake2b(content, digest_size=16, key=self._digest_key).digest()}
        if headers_only:
            size = self._pages.size(data, value, row) if is_page else picture_size(data, limits, rules)
            if (placeholder := processor.placeholder(*size)) is not None:
                return picture, placeholder
        image = self._pages.picture(data, value, row) if is_page else decode(data, limits, rules)
        prepared = processor.prepare(image)
        if not headers_only:
            picture["arrays"] = array_records(prepared.arrays)
        return picture, prepared.placeholder

    def _frame(self, frame: FrameOf, headers_only: bool) -> tuple[dict[str, Any], Placeholder]:
        """The same of a video's frame."""
        if headers_only:
            digest, size = self._frames.header_of(frame)
            if (placeholder := self._processor.placeholder(*size)) is not None:
                return {"digest": digest}, placeholder
        digest, image = self._frames.picture(frame)
        prepared = self._processor.prepare(image)
        picture: dict[str, Any] = {"digest": digest}
        if not headers_only:
            picture["arrays"] = array_records(prepared.arrays)
        return picture, prepared.placeholder

    def _bytes_of(self, value: Any) -> bytes:
        if self._fetched:
            return self._fetched.bytes_of(value)
        return picture_bytes(value, self._spec, self._source)

    def _seeded(self, params: GenerationParams, row_id: Any, question_index: int) -> GenerationParams:
        """The job's seed is mixed with the row's id; a row's own seed stays, whatever the job's is."""
        is_own = params is not self._params and "seed" in params.model_fields_set
        if params.is_greedy or is_own:
            return params
        text = f"{params.seed}/{row_id}/{question_index}".encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1
        return params.model_copy(update={"seed": seed})

    def _sample(
        self, index: int, messages: list[Message], placeholders: list[Placeholder], params: GenerationParams
    ) -> dict[str, Any]:
        try:
            input_ids = self._processor.encode_chat(messages, placeholders)
            if len(input_ids) > self._max_prompt_tokens:
                num_tokens = sum(placeholder.num_tokens for placeholder in placeholders)
                raise RowError(
                    ErrorCode.PROMPT_TOO_LONG,
                    f"{len(input_ids)} tokens, {num_tokens} of them pictures; the limit is "
                    f"{self._max_prompt_tokens}. Shorten the prompt, or let pictures take fewer: model.num_crops for "
                    "Phi-3-Vision, model.processor_options for other models",
                )
        except RowError as error:
            return _failed(index, error_record(error))
        return {
            QUESTION_INDEX: index,
            "input_ids": input_ids,
            "params": params.model_dump_json(exclude_defaults=True),
            "error": None,
        }


def row_values(table: pa.Table, source: Source, password_column: str | None = None) -> Sequence[dict[str, Any]]:
    """What prompts, pictures and parameters need of each row, as Python values; the other columns stay in Arrow."""
    prompt = source.prompt
    named = (source.overrides_column, prompt.messages_column, prompt.questions_column, password_column)
    fields = template_fields(prompt.template or "")
    users = [travelling_name(name) for name in (*source.image_columns, *named, *fields) if name is not None]
    wanted = [name for name in dict.fromkeys((ROW_ID, READ_ERROR, QUESTIONS, *users)) if name in table.column_names]
    # Tables carry columns in other types.
    renamed = (field.with_name(travelling_name(field.name)) for field in source.columns)
    own = {field.name: field for field in (source.id_field, *renamed)}
    schema = pa.schema([own.get(name, table.schema.field(name)) for name in wanted])
    table = with_types(table.select(wanted), schema)
    return PromptRows(table) if table.nbytes > _MANY_BYTES else prompt_rows(table)


def _failed_row(wanted: list[int] | None, error: Mapping[str, Any], num_retries: int = 0) -> Prepared:
    """A row that could not be asked anything: one error, or one for each question that was left of it."""
    samples = [_failed(index, error) for index in wanted or [0]]
    return Prepared(samples, num_questions=max(wanted or [0]) + 1, num_retries=num_retries)


def _failed(index: int, error: Mapping[str, Any]) -> dict[str, Any]:
    return {QUESTION_INDEX: index, "input_ids": None, "params": None, "error": dict(error)}
