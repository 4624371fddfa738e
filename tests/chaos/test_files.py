"""Files of 10,000 rows whose driver is killed: they go on where they were, row by row; one has a damaged row group."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
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


def as_damaged_parquet(path: Path) -> Path:
    """Three row groups of ten cannot be read: in one of them the ids cannot either."""
    path = path.with_suffix(".parquet")
    table = pa.table({"n": [f"{row:05}" for row in range(NUM_ROWS)], "question": questions()})
    pq.write_table(table, path, row_group_size=NUM_ROWS // 10, write_page_checksum=True)
    content, footer = bytearray(path.read_bytes()), pq.read_metadata(path)
    for group, column in ((0, 1), (4, 0), (9, 1)):
        start = footer.row_group(group).column(column).data_page_offset + 200
        content[start : start + 50] = bytes(50)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("written", [as_csv, as_array, as_damaged_parquet])
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
    num_lost = sum(code == "row_malformed" for _, _, code in expected.values())
    assert num_lost == (3 * NUM_ROWS // 10 if written is as_damaged_parquet else 0)
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
