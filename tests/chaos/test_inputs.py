"""Inputs of 10,000 rows whose driver is killed: a WebDataset and a Delta table go on where they were, row by row."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from .harness import Job, Machines, call, make_job

pytestmark = [pytest.mark.data, pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]
NUM_ROWS = 10_000
NUM_COMMITTED = 1_500


def questions() -> list[str | None]:
    return [None if row % 40 == 7 else f"what is {'the other ' * (row % 9)}{row}?" for row in range(NUM_ROWS)]


def webdataset(folder: Path) -> dict[str, Any]:
    """Five shards; a sample without a question has no member of that name."""
    webdataset = pytest.importorskip("webdataset")
    folder.mkdir()
    with webdataset.ShardWriter(f"{folder}/shard-%02d.tar", maxcount=NUM_ROWS // 5, verbose=0) as writer:
        for row, question in enumerate(questions()):
            text = {} if question is None else {"question": question}
            writer.write(
                {"__key__": f"{row:05}", "txt": "a caption", **text},
            )
    return {"path": str(folder), "image_columns": [], "keep_columns": ["question", "txt"]}


def delta(folder: Path) -> dict[str, Any]:
    """Two commits, and one that deletes rows."""
    deltalake = pytest.importorskip("deltalake")
    rows = pa.table({"n": pa.array(range(NUM_ROWS), pa.int64()), "question": questions()})
    for part in (rows.slice(0, 6_000), rows.slice(6_000), rows.slice(0, 100)):
        deltalake.write_deltalake(str(folder), part, mode="append")
    table = deltalake.DeltaTable(str(folder))
    table.delete("n = 50")
    deltalake.write_deltalake(str(folder), rows.slice(50, 1), mode="append")
    return {"path": str(folder), "image_columns": []}


@pytest.mark.parametrize("written", [webdataset, delta])
def test_a_killed_driver_loses_and_doubles_no_row_of(tmp_path: Path, machines: Machines, written: Any) -> None:
    job = make_job(tmp_path / "job", machines)
    job.spec["input"] = written(tmp_path / "rows")
    job.spec["prompt"] = {"template": "{question}"}
    job.spec["batching"] = {"block_rows": 32}
    job.spec["output"]["part_rows"] = 128
    expected = job.expected()
    assert len(expected) >= NUM_ROWS
    committed = kill_driver(job)
    code, text = job.run("--mode", "resume")
    assert code == 0, text
    assert job.manifest()["already_done"] >= committed >= NUM_COMMITTED
    assert job.answers() == expected
    assert call("verify", str(job.out))[0] == 0
    num_left = len(expected) - job.manifest()["already_done"]
    num_failed = sum(status == "error" for status, _, _ in expected.values())
    num_answered = job.activity()["rows"]  # by the run that resumed
    print(f"{committed} rows were committed at the kill, {num_answered} answered after it")
    assert num_left - num_failed <= num_answered <= num_left, "what was committed is not answered again"


def kill_driver(job: Job) -> int:
    """Starts, and kills the driver in the middle; how many rows were committed by then."""
    driver = job.start()
    driver.wait_until(lambda: job.num_committed() >= NUM_COMMITTED)
    committed = job.num_committed()
    driver.send(signal.SIGKILL)
    driver.wait()
    return committed
