"""`data/` and `errors/` are there whatever became of the rows, and an empty part is nobody's trouble."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from ray_job.errors import TooManyRowErrors
from ray_job.output.empty_parts import EMPTY_PART
from ray_job.output.status import job_status

from .conftest import ERROR, FAILED
from .quiet_job import QuietJob

FAILURE = {
    "status": FAILED, "error": ERROR, "generated_text": None, "finish_reason": None, "usage": None,
}  # fmt: skip


def failed(row: int) -> dict[str, Any]:
    return FAILURE


def answered(row: int) -> dict[str, Any]:
    return {}


@pytest.fixture
def job(tmp_path: Path) -> QuietJob:
    job = QuietJob(tmp_path)
    job.write_input(6)
    return job


def names(job: QuietJob, folder: str) -> list[str]:
    return [part.name for part in job.parts(folder)]


@pytest.mark.parametrize(("change", "full", "empty"), [(answered, "data", "errors"), (failed, "errors", "data")])
def test_a_folder_without_rows_has_the_schema(job: QuietJob, change: Any, full: str, empty: str) -> None:
    report = job.run(change=change)
    assert names(job, empty) == [EMPTY_PART]
    assert EMPTY_PART not in names(job, full)
    rows = [ds.dataset(job.out / folder).to_table() for folder in (full, empty)]
    assert [table.num_rows for table in rows] == [6, 0]
    assert rows[0].schema.remove_metadata() == rows[1].schema.remove_metadata()
    assert pq.ParquetFile(job.out / empty / EMPTY_PART).num_row_groups == 0, "some readers die of an empty row group"
    assert report.totals.parts == len(names(job, full))
    assert job.verified().parts == job_status(job.root).parts == len(names(job, full))


def test_failed_rows_that_are_answered_swap_the_empty_part(job: QuietJob) -> None:
    job.run(change=failed)
    job.run("resume", output={"retry_failed": True})
    assert (names(job, "errors"), EMPTY_PART in names(job, "data")) == ([EMPTY_PART], False)
    assert job.verified().answered == 6


def test_a_run_that_is_continued_takes_it_right(job: QuietJob) -> None:
    job.run()
    before = {part: part.read_bytes() for part in [*job.parts(), *job.parts("errors")]}
    job.run("resume")
    assert {part: part.read_bytes() for part in [*job.parts(), *job.parts("errors")]} == before
    job.write_input(8)
    with job.opened("append") as run:
        assert run.work.remaining.num_rows == 2 if not run.work.needs_ids else True


def test_overwriting_leaves_nothing_of_it(job: QuietJob) -> None:
    job.run(change=failed)
    job.run("overwrite")
    assert (names(job, "errors"), EMPTY_PART in names(job, "data")) == ([EMPTY_PART], False)
    job.verified()


def test_a_run_that_fails_too_often_has_both_folders(job: QuietJob) -> None:
    with pytest.raises(TooManyRowErrors):
        job.run(change=failed, limits={"max_errors": 1})
    assert names(job, "data") == [EMPTY_PART]
    assert len(names(job, "errors")) == 1


def test_a_damaged_empty_part_is_found_and_made_again(job: QuietJob) -> None:
    job.run()
    (job.out / "errors" / EMPTY_PART).write_bytes(b"PAR1")
    (job.out / "_SUCCESS").unlink()
    job.run("resume")
    assert ds.dataset(job.out / "errors").count_rows() == 0
    job.verified()
