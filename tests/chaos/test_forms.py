"""A job whose answers have forms, the demo model's, greedy and sampled: killed in the middle and resumed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ray_job

from .harness import Job, Machines, call, run_though_killed
from .test_library_models import questions, rows_of

NUM_ROWS = 96
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "note": {"type": "string", "maxLength": 12},
    },
    "required": ["colour", "count", "note"],
    "additionalProperties": False,
}
# Of every four rows, one has the job's schema, two their own form and one a form that is refused.
OWN = [
    None,
    {"structured_outputs": {"regex": "[a-z]{3,9}-[0-9]{2}"}, "temperature": 0.0},
    {"structured_outputs": {"choice": ["yes", "no", "I cannot tell"]}},
    {"structured_outputs": {"json": {"type": "object", "not": {}}}},
]
pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]


def job_in(folder: Path, machines: Machines, name: str, **batching: Any) -> Job:
    table = pa.table(
        {
            "id": range(NUM_ROWS),
            "question": questions(),
            "params": [json.dumps(OWN[row % 4]) if OWN[row % 4] else None for row in range(NUM_ROWS)],
        }
    )
    pq.write_table(table, folder / "rows.parquet", row_group_size=16)
    spec = {
        "input": {"path": str(folder / "rows.parquet"), "id_column": "id", "image_columns": []},
        "model": {"path": str(Path(ray_job.__file__).parent / "demo" / "model")},
        "generation": {
            "max_new_tokens": 80,
            "temperature": 1.0,
            "seed": 3,
            "overrides_column": "params",
            "structured_outputs": {"json": SCHEMA},
        },
        "batching": {"block_rows": 4, "blocks_per_actor": 2, "max_batch_rows": 8, **batching},
        "workers": {"cpus_per_actor": 0.5, "threads": 1},
        "limits": {"max_errors": NUM_ROWS},
        "output": {"path": str(folder / name), "part_rows": 8},
    }
    return Job(folder, spec, machines.env)


def test_a_job_with_forms_is_killed_and_resumed(machines: Machines, tmp_path: Path) -> None:
    quiet = job_in(tmp_path, machines, "static", engine="static")
    code, text = quiet.run()
    assert code == 0, text
    expected = rows_of(quiet)
    assert len(expected) == NUM_ROWS
    for (row, _), (status, text, reason, _) in expected.items():
        assert status == ("error" if row % 4 == 3 else "ok")
        if row % 4 == 0:
            jsonschema.validate(json.loads(text), SCHEMA)
        elif row % 4 == 1:
            assert re.fullmatch("[a-z]{3,9}-[0-9]{2}", text)
        elif row % 4 == 2:
            assert text in ("yes", "no", "I cannot tell")
        assert reason == (None if row % 4 == 3 else "stop")
    assert len({text for _, text, *_ in expected.values()}) > NUM_ROWS // 3

    job = job_in(tmp_path, machines, "continuous", engine="continuous")
    run_though_killed(job, machines, NUM_ROWS)
    assert rows_of(job) == expected
    code, text = call("verify", str(job.out))
    assert code == 0, text
