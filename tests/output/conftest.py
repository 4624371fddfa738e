"""Outputs made without Ray: results are written by the real part writer, at the numbers a run would give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_job.inputs.remaining import Remaining
from ray_job.output.ledger import Ledger
from ray_job.rows import ATTEMPTS, NUM_QUESTIONS, POSITION, output_schema, result_schema
from ray_job.stages.write import PartWriter
from ray_job.storage.places import Location, locate

OK, FAILED = "ok", "error"
ERROR = {"type": "RowError", "code": "storage", "message": "gone", "stage": "prepare", "retryable": True}


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return locate(str(tmp_path / "out"))


def schema(has_questions: bool = False) -> pa.Schema:
    return output_schema(pa.string(), [pa.field("label", pa.int64())], has_questions)


def record(position: int, status: str = OK, question: int = 0, num_questions: int = 1, **other: Any) -> dict[str, Any]:
    """One row as the actor gives it."""
    return {
        POSITION: position,
        ATTEMPTS: 0,
        NUM_QUESTIONS: num_questions,
        "row_id": f"row-{position}",
        "question_index": question,
        "label": position,
        "generated_text": f"answer {position}.{question}" if status == OK else None,
        "finish_reason": "stop" if status == OK else None,
        "usage": {"prompt_tokens": 3, "completion_tokens": 2} if status == OK else None,
        "status": status,
        "error": ERROR if status == FAILED else None,
        "attempts": 1,
        "latency_ms": 1.0,
        **other,
    }


def write(root: Location, records: Iterable[Mapping[str, Any]], run: int = 1, has_questions: bool = False) -> None:
    """Commits records as one part of a run."""
    columns = schema(has_questions)
    table = pa.Table.from_pylist([dict(row) for row in records], result_schema(columns))
    PartWriter(root, columns, run)(table)


def left_rows(remaining: Remaining) -> list[int]:
    return [int(row) for row in np.flatnonzero(remaining.is_left)]


def again_rows(remaining: Remaining) -> dict[int, tuple[int, int, list[int] | None]]:
    """Row → number, attempts, questions left."""
    return {
        row["row"]: (row["_rj_position"], row["_rj_attempts"], row["_rj_questions"])
        for row in remaining.again.to_pylist()
    }


def scan(root: Location) -> Ledger:
    return Ledger.scan(root)
