"""Rows that kill, hang or break Ray's workers, one of each kind; `test_lives.py` has them all and compares answers."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_job import JobSpec, run_job
from ray_job.errors import RayJobError
from ray_job.output.verify import verify
from ray_job.storage.places import locate
from tests.conftest import small_ray

from . import poison
from .harness import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(300)]
BLOCK_ROWS = 16


@pytest.fixture(scope="module", autouse=True)
def deadly_ray() -> Iterator[None]:
    """One Ray for this module, in whose workers rows can be deadly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ROOT)  # workers import the hook's module
        with small_ray(runtime_env={"worker_process_setup_hook": poison.install}):
            yield


def run(folder: Path, rows: int, deadly: dict[int, Any], **limits: Any) -> dict[int, dict[str, Any]]:
    """Runs a job of text rows, some of them deadly; its records by row id, after verifying that they are all there."""
    questions = [deadly[row] if isinstance(deadly.get(row), str) else f"what is {row}?" for row in range(rows)]
    seeds = [deadly[row] if isinstance(deadly.get(row), int) else 0 for row in range(rows)]
    table = {"id": range(rows), "question": questions, "params": [json.dumps({"seed": seed}) for seed in seeds]}
    pq.write_table(pa.table(table), folder / "rows.parquet")
    spec = {
        "input": {"path": str(folder / "rows.parquet"), "id_column": "id", "image_columns": []},
        "generation": {"overrides_column": "params"},
        "model": {"path": "builtin:noop"},
        "batching": {"block_rows": BLOCK_ROWS},
        "limits": limits,
        "output": {"path": str(folder / "out"), "part_rows": 32, "mode": "overwrite"},
    }
    run_job(JobSpec.from_dict(spec), stream=io.StringIO())
    found = verify(locate(str(folder / "out")))
    assert found.is_good, found.table()
    records = [row for part in folder.glob("out/*/part-*") for row in pq.read_table(part).to_pylist()]
    assert len(records) == rows
    return {record["row_id"]: record for record in records}


def test_each_deadly_row_is_one_error_and_the_others_are_answered(tmp_path: Path) -> None:
    deadly = {3: poison.CRASH, 20: poison.HANG, 33: poison.RAISE, 50: poison.PREPARE_CRASH}
    records = run(tmp_path, 96, deadly, row_deadline_s=1.0)
    failed = {row: record["error"]["code"] for row, record in records.items() if record["status"] == "error"}
    assert failed == {row: poison.CODES[how] for row, how in deadly.items()}
    answers = [record["generated_text"] for row, record in records.items() if row not in deadly]
    assert all(re.fullmatch(r"\d+ tokens that sum to \d+", text) for text in answers)
    for row in deadly:
        error = records[row]["error"]
        assert (error["retryable"], error["stage"]) == (False, "prepare" if row == 50 else "generate")
        assert 2 <= records[row]["attempts"] <= 4, records[row]
        assert "with no other row in flight" in error["message"]


@pytest.mark.parametrize(("how", "who"), [(poison.KILL, "an actor's"), (poison.PREPARE_CRASH, "a preparing task's")])
def test_more_deaths_than_allowed_end_the_job_and_name_the_rows(tmp_path: Path, how: Any, who: str) -> None:
    with pytest.raises(RayJobError) as caught:
        run(tmp_path, 48, {20: how}, max_restarts=1)
    text = str(caught.value)
    assert text.startswith(f"{who} process died more often than limits.max_restarts allows"), text
    suspects = re.search(r"Rows in flight: (\d+) to (\d+)", text)
    assert suspects is not None, text
    assert int(suspects[1]) <= 20 <= int(suspects[2]) < int(suspects[1]) + BLOCK_ROWS // 8, "the piece that died last"
    assert "--mode resume" in text
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert manifest["state"] == "failed"
