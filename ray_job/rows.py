"""The nouns every stage shares: column names, Arrow schemas, and the life of a row.

    row       one record of the input, with its `row_id`
    sample    one question about a row's pictures, ready for a model: token ids and HD pictures
    result    one sample's answer, or its error

A row has one sample, or several when it holds a list of questions (`question_index` tells them apart).
No heavy imports here: numpy and pyarrow only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_job.arrow.column_types import carried_field, stored_field
from ray_job.errors import RowError
from ray_job.spec import GenerationParams, StructuredOutputs
from ray_job.structured.arrow_types import arrow_type

ROW_ID = "row_id"
QUESTION_INDEX = "question_index"
PARSED = "parsed"

# Columns that live only inside the pipeline.
INTERNAL_PREFIX = "_rj_"
POSITION = "_rj_position"  # reader → parts: the row's number, unique and stable for the life of an output
QUESTIONS = "_rj_questions"  # reader → prepare: which questions are left of a row done in part; null: all
ATTEMPTS = "_rj_attempts"  # reader → parts: how often the row was tried before
NUM_QUESTIONS = "_rj_num_questions"  # prepare → parts: how many samples the row has in all
READ_ERROR = "_rj_read_error"  # readers → prepare: ERROR_TYPE, null for a good row
SAMPLES = "_rj_samples"  # prepare → actor: one entry per question
PREPARE_S = "_rj_prepare_s"  # prepare → actor: seconds spent on the row
WORKER = "_rj_worker"  # actor → parts: JSON of what the actor has done so far, in one row of a block
PICTURES = "_rj_pictures"  # prepare → actor: the row's pictures, shared by its samples

ERROR_TYPE = pa.struct(
    [
        ("type", pa.string()),
        ("code", pa.string()),
        ("message", pa.string()),
        ("stage", pa.string()),
        ("retryable", pa.bool_()),
    ]
)
USAGE_TYPE = pa.struct([("prompt_tokens", pa.int32()), ("completion_tokens", pa.int32())])
SAMPLE_TYPE = pa.struct(
    [
        (QUESTION_INDEX, pa.int32()),
        ("input_ids", pa.list_(pa.int32())),  # picture k's placeholders are −k
        ("params", pa.string()),  # JSON of GenerationParams
        ("error", ERROR_TYPE),
    ]
)
ARRAY_TYPE = pa.struct(
    [
        ("name", pa.string()),
        ("dtype", pa.string()),  # numpy's name
        ("shape", pa.list_(pa.int32())),
        ("data", pa.large_binary()),  # in C order
    ]
)
PICTURE_TYPE = pa.struct(
    [
        ("digest", pa.binary()),  # 16-byte hash of all its encoded bytes
        ("arrays", pa.list_(ARRAY_TYPE)),  # what the model's processor made of it
    ]
)
RESULT_FIELDS = (
    pa.field("generated_text", pa.string()),
    pa.field("finish_reason", pa.string()),
    pa.field("usage", USAGE_TYPE),
    pa.field("status", pa.string()),
    pa.field("error", ERROR_TYPE),
    pa.field("attempts", pa.int32()),
    pa.field("latency_ms", pa.float64()),
)
_ACCOUNT_FIELDS = (
    pa.field(POSITION, pa.int64()),
    pa.field(ATTEMPTS, pa.int32()),
    pa.field(NUM_QUESTIONS, pa.int32()),
)
_MESSAGE_CHARS = 2000
OUTPUT_COLUMNS = frozenset({ROW_ID, *(field.name for field in RESULT_FIELDS)})  # those that every output has
_OWN_COLUMNS = OUTPUT_COLUMNS | {QUESTION_INDEX, PARSED}


class Status(StrEnum):
    """Whether a row was answered."""

    OK = "ok"
    ERROR = "error"


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"  # a stop token or stop string
    LENGTH = "length"  # max_new_tokens, or the model's longest sequence


@dataclass(frozen=True, slots=True)
class Picture:
    """A prepared picture, as its model's processor made it."""

    digest: bytes  # equal digests mean equal arrays within one job
    arrays: Mapping[str, npt.NDArray[Any]]  # by the names that the model knows; not to be written to


@dataclass(frozen=True, slots=True)
class Sample:
    """What an engine is asked: one prompt with its pictures.

    `key` is the caller's and comes back in the result; it means nothing to the engine.
    """

    key: int
    input_ids: Sequence[int]  # picture k's placeholders are −k
    pictures: Sequence[Picture]
    params: GenerationParams


@dataclass(frozen=True, slots=True)
class Result:
    """What an engine answers: tokens and text, or an error; never neither."""

    key: int
    token_ids: Sequence[int] = ()  # without the token that ended the answer
    text: str | None = None
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0  # tokens the model produced, the ending one included
    latency_ms: float = 0.0
    error: RowError | None = None


def array_records(arrays: Mapping[str, npt.NDArray[Any]]) -> list[dict[str, Any]]:
    """A picture's arrays as values of ARRAY_TYPE."""
    return [
        {"name": name, "dtype": array.dtype.name, "shape": list(array.shape), "data": array.tobytes()}
        for name, array in arrays.items()
    ]


def arrays_of(records: Iterable[Mapping[str, Any]]) -> dict[str, npt.NDArray[Any]]:
    """The inverse of `array_records`; the arrays are the records' own bytes."""
    return {
        record["name"]: np.frombuffer(record["data"], record["dtype"]).reshape(record["shape"]) for record in records
    }


def error_record(error: RowError) -> dict[str, Any]:
    """A row's failure as a value of ERROR_TYPE: its message may quote the row, at any length and in any characters."""
    message = error.message if len(error.message) <= _MESSAGE_CHARS else error.message[:_MESSAGE_CHARS] + "…"
    return {
        "type": type(error).__name__,
        "code": str(error.code),
        "message": message.encode(errors="backslashreplace").decode(),
        "stage": str(error.stage),
        "retryable": error.is_retryable,
    }


def kept_names(names: Iterable[str]) -> dict[str, str]:
    """What the output calls the input's columns: their own names, or `input_…` where the name is ours.

    It depends on the names alone. Where `input_…` is there as well, as in the output of an output, a number follows.
    """
    names = list(names)
    taken = {name for name in names if not _is_ours(name)}
    kept = {}
    for name in names:
        kept[name] = name
        if _is_ours(name):
            kept[name] = next(other for other in _other_names(name) if other not in taken)
            taken.add(kept[name])
    return kept


def _other_names(name: str) -> Iterator[str]:
    yield f"input_{name}"
    yield from (f"input_{name}_{number}" for number in itertools.count(2))


def travelling_name(name: str) -> str:
    """What a user's column is called between reader and prepare: another name only where a column of ours is there."""
    return f"{INTERNAL_PREFIX}user_{name}" if name == ROW_ID or name.startswith(INTERNAL_PREFIX) else name


def kept_fields(kept: Iterable[pa.Field]) -> list[pa.Field]:
    """The fields of columns that are passed through, as the output names them."""
    kept = list(kept)
    names = kept_names(field.name for field in kept)
    return [field.with_name(names[field.name]) for field in kept]


def _is_ours(name: str) -> bool:
    return name in _OWN_COLUMNS or name.startswith(INTERNAL_PREFIX)


def output_schema(
    row_id_type: pa.DataType, kept: Iterable[pa.Field], has_questions: bool, form: StructuredOutputs | None = None
) -> pa.Schema:
    """The one schema of answered and failed rows, as Parquet holds them: id, [question_index,] kept and result columns.

    `kept` are the input's columns under their own names; `kept_names` says which of them the output calls otherwise.
    `form` is the job's; where it is JSON there is the column `parsed`, behind the answer's text.

    Raises:
        pa.ArrowException, OSError: Parquet cannot hold a column; `inputs.columns` refuses it long before.
    """
    questions = [pa.field(QUESTION_INDEX, pa.int32())] if has_questions else []
    users = [stored_field(field) for field in (pa.field(ROW_ID, row_id_type), *kept_fields(kept))]
    text, *others = RESULT_FIELDS
    return pa.schema([users[0], *questions, *users[1:], text, *_parsed_fields(form), *others])


def _parsed_fields(form: StructuredOutputs | None) -> list[pa.Field]:
    if form is None or form.json_schema is None:
        return []
    return [stored_field(pa.field(PARSED, arrow_type(form.json_schema)))]


def result_schema(output: pa.Schema) -> pa.Schema:
    """The schema between generating and writing: the output's, with what a part must know of its rows."""
    return pa.schema([*_ACCOUNT_FIELDS, *map(carried_field, output), pa.field(WORKER, pa.string())])


def prepared_schema(row_id_type: pa.DataType, kept: Iterable[pa.Field]) -> pa.Schema:
    """The schema between preparing and generating: the row's account, id, kept columns, samples and pictures."""
    users = (pa.field(ROW_ID, row_id_type), *kept_fields(kept))
    return pa.schema(
        [
            *_ACCOUNT_FIELDS,
            *(carried_field(stored_field(field)) for field in users),
            pa.field(SAMPLES, pa.list_(SAMPLE_TYPE)),
            pa.field(PICTURES, pa.list_(PICTURE_TYPE)),
            pa.field(PREPARE_S, pa.float64()),
        ]
    )
