"""Text files of 10,000 rows whose driver is killed: they go on where they were, row by row."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from .harness import Machines, call, make_job

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]
NUM_ROWS = 10_000
NUM_COMMITTED = 1_500


def questions() -> list[str | None]:
    return [None if row % 40 == 7 else f'what is,\n"the other" {row}?' for row in range(NUM_ROWS)]


def as_csv(path: Path) -> Path:
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["n", "question"])
        writer.writerows([f"{row:05}", question] for row, question in enumerate(questions()))
    return path.with_suffix(".csv")


def as_array(path: Path) -> Path:
    rows = [{"n": f"{row:05}", "question": question} for row, question in enumerate(questions())]
    path.with_suffix(".json").write_text(json.dumps(rows, indent=1))
    return path.with_suffix(".json")


@pytest.mark.parametrize("written", [as_csv, as_array])
def test_a_killed_driver_loses_and_doubles_no_row_of(
    tmp_path: Path, machines: Machines, written: Callable[[Path], Path]
) -> None:
    job = make_job(tmp_path / "job", machines)
    job.spec["input"] = {"path": str(written(tmp_path / "rows")), "id_column": "n", "keep_columns": ["question"]}
    job.spec["prompt"] = {"template": "{question}"}
    job.spec["batching"] = {"block_rows": 32}
    job.spec["output"]["part_rows"] = 128
    expected = job.expected()
    assert len(expected) == NUM_ROWS
    driver = job.start()
    driver.wait_until(lambda: job.num_committed() >= NUM_COMMITTED)
    committed = job.num_committed()
    driver.send(signal.SIGKILL)
    driver.wait()
    code, text = job.run("--mode", "resume")
    assert code == 0, text
    assert job.manifest()["already_done"] >= committed
    assert job.answers() == expected
    assert call("verify", str(job.out))[0] == 0
