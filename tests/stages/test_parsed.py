"""What the actor makes of answers where the job has a schema."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from ray_job.errors import ErrorCode, RowError, Stage
from ray_job.rows import (
    FinishReason,
    Result,
    error_record,
    output_schema,
    prepared_schema,
    result_schema,
)
from ray_job.spec import GenerationParams, StructuredOutputs
from ray_job.stages.generate import _PreparedRows

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}, "any": {}}, "required": ["n"]}
STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
FAILURE = RowError(ErrorCode.DEADLINE, "too late", Stage.GENERATE)


def rows(num_rows: int, failed: tuple[int, ...] = ()) -> _PreparedRows:
    """Prepared rows with one sample each."""
    samples = [
        {
            "question_index": 0,
            "input_ids": [1],
            "params": GenerationParams().model_dump_json(),
            "error": error_record(FAILURE) if row in failed else None,
        }
        for row in range(num_rows)
    ]
    records = [
        {"_rj_position": row, "_rj_attempts": 0, "_rj_num_questions": 1, "row_id": str(row), "_rj_samples": [sample],
         "_rj_pictures": []}
        for row, sample in enumerate(samples)
    ]  # fmt: skip
    return _PreparedRows(pa.Table.from_pylist(records, prepared_schema(pa.string(), ())))


def parsed(results: list[Result], form: dict[str, Any], failed: tuple[int, ...] = ()) -> pa.ChunkedArray:
    output = output_schema(pa.string(), (), False, StructuredOutputs.model_validate(form))
    table = rows(len(results) + len(failed), failed).with_results(results, output, "{}")
    assert table.schema == result_schema(output)
    return table.column("parsed")


def test_an_answer_is_its_value_only_where_it_ended() -> None:
    whole = '{"n":12,"any":[1]}'
    results = [
        Result(0, text=whole, finish_reason=STOP),
        Result(1, text=whole, finish_reason=LENGTH),
        Result(2, text='{"n":', finish_reason=LENGTH),
        Result(4, error=FAILURE),
        Result(5, text='{"n":"a text, by a form of its own"}', finish_reason=STOP),
        Result(6, text="yes", finish_reason=STOP),
    ]
    value = {"n": 12, "any": "[1]"}
    assert parsed(results, {"json": SCHEMA}, failed=(3,)).to_pylist() == [value, *[None] * 6]


def test_a_number_that_was_cut_is_none() -> None:
    results = [Result(row, text="12", finish_reason=why) for row, why in enumerate((STOP, LENGTH))]
    assert parsed(results, {"json": {"type": "integer"}}).to_pylist() == [12, None]


def test_a_block_of_failures_has_the_type() -> None:
    column = parsed([Result(0, error=FAILURE)], {"json": SCHEMA})
    assert (column.null_count, pa.types.is_struct(column.type)) == (1, True)


@pytest.mark.parametrize("form", [{"choice": ["a"]}, {"regex": "a"}, {"grammar": 'start: "a"'}])
def test_only_json_has_the_column(form: dict[str, Any]) -> None:
    assert "parsed" not in output_schema(pa.string(), (), False, StructuredOutputs.model_validate(form)).names
    assert "parsed" not in output_schema(pa.string(), (), False).names
