"""Columns of every Arrow type in a template, from a real file: as a person would write their values."""

from __future__ import annotations

import datetime
import decimal
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.opening import open_source
from ray_job.prompts.column_text import text_of
from ray_job.prompts.conversation import Conversations
from ray_job.prompts.parts import Text
from ray_job.spec import JobSpec
from ray_job.stages.prepare import row_values

UTC_NOON = datetime.datetime(2024, 1, 1, 12)
FLOAT32 = pa.float32()
UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")


def asked(path: Path, values: pa.Array, **prompt: Any) -> list[str]:
    """What the template `{value}` asks of each row."""
    pq.write_table(pa.table({"value": values}), path)
    data = {"input": {"path": str(path)}, "prompt": prompt or {"template": "{value}"}, "output": {"path": "out"}}
    source = open_source(JobSpec.from_dict(data))
    conversations = Conversations(source.prompt, ())
    texts = []
    for table in source.read(source.splits[0], 100):
        for row in row_values(table, source):
            for (message,) in conversations.of_row(row, 0):
                texts.append("".join(part.text for part in message.parts if isinstance(part, Text)))
    return texts


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array(["", "it's 'so'", "é"]), ["", "it's 'so'", "é"]),
        (pa.array(["long" * 9], pa.string_view()), ["long" * 9]),
        (pa.array([b"caf\xc3\xa9"]), ["café"]),
        (pa.array([b"abc"], pa.binary(3)), ["abc"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"]),
        (pa.array([-3], pa.int8()), ["-3"]),
        (pa.array([1.1, 3.0, 0.1, 16777216.0, float("nan")], FLOAT32), ["1.1", "3.0", "0.1", "16777216.0", "nan"]),
        (pa.array(np.array([1.1, -0.5], np.float16)), ["1.1", "-0.5"]),
        (pa.array([1.1, 1e22, 0.1 + 0.2]), ["1.1", "1e+22", "0.30000000000000004"]),
        (pa.array([decimal.Decimal("1.10"), decimal.Decimal("0E-10")]), ["1.1000000000", "0.0000000000"]),
        (pa.array([decimal.Decimal("1.10")], pa.decimal256(50, 2)), ["1.10"]),
        (pa.array([datetime.date(2024, 1, 31)]), ["2024-01-31"]),
        (pa.array([UTC_NOON], pa.timestamp("s")), ["2024-01-01 12:00:00"]),
        (pa.array([UTC_NOON], pa.timestamp("us")), ["2024-01-01 12:00:00"]),
        (pa.array([1_700_000_000_120_000_000], pa.timestamp("ns")), ["2023-11-14 22:13:20.12"]),
        (pa.array([UTC_NOON], pa.timestamp("us", "Europe/Berlin")), ["2024-01-01 13:00:00+01:00"]),
        (pa.array([UTC_NOON], pa.timestamp("ms", "+05:30")), ["2024-01-01 17:30:00+05:30"]),
        (pa.array([UTC_NOON], pa.timestamp("us", "UTC")), ["2024-01-01 12:00:00Z"]),
        (pa.array([90], pa.time32("s")), ["00:01:30"]),
        (pa.array([1_500_000_100], pa.time64("ns")), ["00:00:01.5000001"]),
        (pa.array([90, -90, 200_000], pa.duration("s")), ["0:01:30", "-0:01:30", "55:33:20"]),
        (pa.array([1_500], pa.duration("ms")), ["0:00:01.5"]),
        (pa.array([UUID.bytes], pa.uuid()), [str(UUID)]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array([["cat", None, "it's"], []]), ["cat, null, it's", ""]),
        (pa.array([[1.1, 2.0]], pa.list_(FLOAT32)), ["1.1, 2.0"]),
        (pa.array([[1.1, 2.5]], pa.list_(FLOAT32, 2)), ["1.1, 2.5"]),
        (pa.array([[True, None]]), ["true, null"]),
        (pa.array([[b"x", b"y"]]), ["x, y"]),
        (pa.array([[UTC_NOON]], pa.large_list(pa.timestamp("us", "UTC"))), ["2024-01-01 12:00:00Z"]),
        (pa.array([[[1.1], [2.0, None]]], pa.list_(pa.list_(FLOAT32))), ["[1.1], [2.0, null]"]),
        (pa.array([[{"a": 1}, {"a": 2}]]), ['{"a": 1}, {"a": 2}']),
        (
            pa.array([{"a": 1, "b": "x\"é", "c": None, "d": [True], "e": b"y"}]),
            ['{"a": 1, "b": "x\\"é", "c": null, "d": [true], "e": "y"}'],
        ),
        (
            pa.array([{"f": 1.1, "t": UTC_NOON}], pa.struct([("f", FLOAT32), ("t", pa.timestamp("us"))])),
            ['{"f": 1.1, "t": "2024-01-01 12:00:00"}'],
        ),
        (pa.array([[("k", 1), ("l", None)], []], pa.map_(pa.string(), pa.int64())), ['{"k": 1, "l": null}', ""]),
        (pa.array([[(1, decimal.Decimal("1.10"))]], pa.map_(pa.int64(), pa.decimal128(9, 2))), ['{"1": 1.10}']),
    ],
    ids=lambda value: str(value.type)[:40] if isinstance(value, pa.Array) else "",
)  # fmt: skip
def test_a_value_of_any_type_reads_as_a_person_would_write_it(
    tmp_path: Path, values: pa.Array, expected: list[str]
) -> None:
    assert asked(tmp_path / "a.parquet", values) == expected


def test_questions_are_written_alike(tmp_path: Path) -> None:
    values = pa.array([[1.1, 2.0]], pa.list_(FLOAT32))
    assert asked(tmp_path / "a.parquet", values, questions_column="value") == ["1.1", "2.0"]


@pytest.mark.parametrize("values", [pa.array([b"\xff\xd8"]), pa.array([[b"\xff\xd8"]]), pa.array([{"a": b"\xff"}])])
def test_bytes_that_are_no_text_are_the_rows_error(tmp_path: Path, values: pa.Array) -> None:
    with pytest.raises(RowError, match=r"column 'value' holds bytes that are not UTF-8 text at byte 0") as caught:
        asked(tmp_path / "a.parquet", values)
    assert caught.value.code == ErrorCode.ROW_MALFORMED


def test_a_float_that_was_a_whole_number_stays_a_float() -> None:
    assert text_of(3.0) == "3.0"
    assert text_of(3) == "3"
