"""An output as the next job's input: each of its rows once, and never one that is not finished."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_job.errors import InputError
from ray_job.spec import JobSpec
from tests.jobs_here import run_here

from .conftest import opened, rows_of


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Of 40 rows, each third of which fails."""
    rows = {
        "id": [f"id-{row}" for row in range(40)],
        "prompt": [None if row % 3 == 0 else f"q{row}" for row in range(40)],
    }
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    spec = {
        "input": {"path": str(tmp_path / "rows.parquet"), "id_column": "id"},
        "model": {"path": "builtin:noop"},
        "output": {"path": str(tmp_path / "answers"), "part_rows": 8},
    }
    run_here(JobSpec.from_dict(spec))
    return tmp_path / "answers"


def test_answers_and_errors_are_its_rows_each_once(output: Path) -> None:
    asked = {"id_column": "row_id", "keep_columns": ["prompt"]}
    rows = rows_of(opened(output, template="{prompt}", input=asked))
    assert sorted(row["row_id"] for row in rows) == sorted(f"id-{row}" for row in range(40))
    answers = rows_of(opened(output / "data", template="{prompt}", input=asked))
    assert sorted(row["row_id"] for row in answers) == sorted(f"id-{row}" for row in range(40) if row % 3)
    assert {row["prompt"] for row in answers} == {f"q{row}" for row in range(40) if row % 3}


def test_one_that_is_not_finished_is_refused_with_what_to_do(output: Path) -> None:
    (output / "_SUCCESS").unlink()
    for path in (output, output.parent):
        with pytest.raises(InputError, match=r"answers: the output of a run that is not finished.*--mode\s*resume"):
            opened(path, template="x", input={"id_column": "row_id", "keep_columns": []})
    assert opened(output / "data", template="x", input={"id_column": "row_id", "keep_columns": []}).num_rows == 26
