"""A large finished run with nothing left to do, resumed through the real command line.

The run is made by the real part writer without Ray. `RAY_JOB_ROWS=1000000` makes it a million rows; `-s` shows what
resuming costs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ray_job import JobSpec
from ray_job.output.parts import Receipt
from ray_job.output.run import Run
from ray_job.rows import output_schema, result_schema
from ray_job.stages.open_job import open_job
from ray_job.stages.write import PartWriter

NUM_ROWS = int(os.environ.get("RAY_JOB_ROWS", "20000"))
PART_ROWS = 256
# Not getrusage: its peak includes the process that the command was forked from.
RUN = """
import pathlib, re, sys
from ray_job.cli import main
code = main(["run", sys.argv[1]])
print(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
sys.exit(code)
"""


def finished_run(folder: Path) -> Path:
    """The spec's file of a run that answered every row."""
    ids = [f"row-{row:09}" for row in range(NUM_ROWS)]
    pq.write_table(pa.table({"id": ids, "question": ["what?"] * NUM_ROWS}), folder / "rows.parquet")
    data = {
        "input": {"path": str(folder / "rows.parquet"), "id_column": "id", "image_columns": []},
        "model": {"path": "builtin:noop"},
        "output": {"path": str(folder / "out"), "mode": "resume"},
    }
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(data))
    spec, source, _ = open_job(JobSpec.from_yaml(file))
    schema = output_schema(source.id_field.type, source.kept, spec.has_questions)
    with Run.open(spec, source) as run:
        run.begin()
        writer = PartWriter(run.root, schema, run.number)
        for start in range(0, NUM_ROWS, PART_ROWS):
            count = min(PART_ROWS, NUM_ROWS - start)
            columns = {
                "_rj_position": np.arange(start, start + count),
                "_rj_attempts": np.zeros(count, np.int32),
                "_rj_num_questions": np.ones(count, np.int32),
                "row_id": ids[start : start + count],
                "question": ["what?"] * count,
                "generated_text": ["an answer"] * count,
                "finish_reason": ["stop"] * count,
                "usage": [{"prompt_tokens": 5, "completion_tokens": 2}] * count,
                "status": ["ok"] * count,
                "error": [None] * count,
                "attempts": [1] * count,
                "latency_ms": [1.0] * count,
                "_rj_worker": [None] * count,
            }
            for receipt in Receipt.of_table(writer(pa.table(columns, schema=result_schema(schema)))):
                run.add(receipt)
        run.finish()
    return file


@pytest.mark.timeout(600)
def test_resuming_a_finished_run_takes_seconds_and_bounded_memory(tmp_path: Path) -> None:
    file = finished_run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    started_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", RUN, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    elapsed_s, peak_mib = time.monotonic() - started_s, int(done.stdout.splitlines()[-1]) / 1024
    print(f"{NUM_ROWS} rows: resumed in {elapsed_s:.1f} s with {peak_mib:.0f} MiB at the peak")
    assert peak_mib < 300 + 200 * NUM_ROWS / 1_000_000
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
