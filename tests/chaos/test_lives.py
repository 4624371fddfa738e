"""Rows that kill, hang or break the process they run in, with real deaths and without Ray (`lives.py`)."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ray_job.spec import LimitsSpec

from . import poison
from .lives import BLOCK_ROWS

NUM_ROWS = 128
DEADLY: dict[int, Any] = {
    3: poison.CRASH,
    20: poison.KILL,
    21: poison.KILL,
    60: poison.HANG,
    90: poison.RAISE,
    127: poison.HANG_NATIVE,
    70: poison.PREPARE_CRASH,
    75: poison.PREPARE_HANG,
}


def lives(folder: Path, deadly: dict[int, Any]) -> dict[str, Any]:
    folder.mkdir()
    questions = [deadly[row] if isinstance(deadly.get(row), str) else f"what is {row}?" for row in range(NUM_ROWS)]
    seeds = [deadly[row] if isinstance(deadly.get(row), int) else 0 for row in range(NUM_ROWS)]
    columns = {"id": range(NUM_ROWS), "question": questions, "params": [json.dumps({"seed": seed}) for seed in seeds]}
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    spec = {
        "input": {"path": str(folder / "rows.parquet"), "id_column": "id", "image_columns": []},
        "generation": {"overrides_column": "params"},
        "model": {"path": "builtin:noop"},
        "limits": {"row_deadline_s": 0.4},
        "output": {"path": "unused"},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "tests.chaos.lives", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["left"] == [], "no mark stays"
    found["records"] = {record["row_id"]: record for record in found["records"]}
    assert len(found["records"]) == NUM_ROWS
    return found


def test_each_deadly_row_is_one_error_and_the_others_are_answered(tmp_path: Path) -> None:
    found, quiet = lives(tmp_path / "deadly", DEADLY), lives(tmp_path / "quiet", {})
    assert (quiet["prepare_deaths"], quiet["generate_deaths"]) == (0, 0)
    records = found["records"]
    failed = {row: record["error"]["code"] for row, record in records.items() if record["status"] == "error"}
    assert failed == {row: poison.CODES[how] for row, how in DEADLY.items()}
    assert {row: record["generated_text"] for row, record in records.items() if row not in DEADLY} == {
        row: record["generated_text"] for row, record in quiet["records"].items() if row not in DEADLY
    }
    for row, how in DEADLY.items():
        error = records[row]["error"]
        assert (error["retryable"], error["stage"]) == (False, "prepare" if isinstance(how, str) else "generate")
        assert "with no other row in flight" in error["message"]
        assert 2 <= records[row]["attempts"] + records[row]["_rj_attempts"] <= 4
    levels = 1 + math.ceil(math.log(BLOCK_ROWS, 8))
    assert found["prepare_deaths"] <= 2 * levels
    assert found["generate_deaths"] <= 6 * levels <= LimitsSpec().max_restarts
