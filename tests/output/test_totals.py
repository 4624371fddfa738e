"""How many rows may fail: by number and by share, while a run goes and when all is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_job.errors import TooManyRowErrors
from ray_job.output.compaction import drop_superseded
from ray_job.output.parts import Receipt
from ray_job.output.status import job_status
from ray_job.output.totals import Totals
from ray_job.output.verify import verify
from ray_job.spec import LimitsSpec
from ray_job.storage.places import Location

from .conftest import FAILED, record, scan, write
from .quiet_job import QuietJob

NUM_ROWS = 20


def test_each_part_adds_what_its_receipt_says() -> None:
    totals = Totals(1, 1, 0, 10, 5, 1, {"storage": 1})
    totals.add(Receipt("p", 3, 4, 2, 30, 7, {"deadline": 2, "storage": 1}))
    totals.add(Receipt("q", 0, 1, 0, 5, 1), num_completed=2)
    assert totals == Totals(6, 6, 2, 45, 13, 3, {"storage": 2, "deadline": 2})


@pytest.mark.parametrize("retry_failed", [False, True])
def test_a_resumed_run_starts_from_what_is_committed(root: Location, retry_failed: bool) -> None:
    write(root, [record(0), record(1), record(2, FAILED)])
    totals = Totals()
    totals.start(scan(root), 2 if retry_failed else 3, retry_failed)
    failed = (0, {}) if retry_failed else (1, {"storage": 1})
    assert totals == Totals(2 if retry_failed else 3, 2, failed[0], 6, 4, 1, failed[1])


def test_compaction_keeps_what_the_records_that_count_add_up_to(root: Location) -> None:
    write(root, [record(0, FAILED), record(1, FAILED)], run=1)
    write(root, [record(0), record(2)], run=2)
    write(root, [record(2), record(3)], run=3)
    ledger = scan(root)
    assert drop_superseded(root, ledger) == 2
    assert Totals.of_ledger(scan(root)) == Totals(4, 3, 1, 9, 6, 3, {"storage": 1})


def failing(*rows: int) -> Any:
    return lambda row: record(row, FAILED) if row in rows else {}


@pytest.mark.parametrize(
    ("rate", "failed", "is_too_many"),
    [
        *((0.1, 2, False), (0.1, 3, True), (0.15, 3, False)),
        *((0.0, 0, False), (0.0, 1, True), (1.0, 20, False), (None, 20, False)),
    ],
)
def test_a_rate_is_of_all_rows_of_the_input(rate: float | None, failed: int, is_too_many: bool) -> None:
    totals = Totals(rows=failed, failed=failed, error_codes={"storage": failed})
    limits = LimitsSpec(max_error_rate=rate)
    if not is_too_many:
        totals.check(limits, NUM_ROWS)
        return
    with pytest.raises(TooManyRowErrors) as caught:
        totals.check(limits, NUM_ROWS)
    assert str(caught.value) == (
        f"{failed} of {NUM_ROWS} rows failed ({failed} storage); limits.max_error_rate is {rate}"
    )


def test_rows_with_several_questions_are_judged_by_their_records() -> None:
    totals = Totals(rows=10, answered=90, failed=10)
    totals.check(LimitsSpec(max_error_rate=0.1), 10)
    with pytest.raises(TooManyRowErrors, match="10 of 100 questions failed"):
        totals.check(LimitsSpec(max_error_rate=0.09), 10)


@pytest.mark.parametrize(("most", "is_too_many"), [(3, False), (2, True), (None, False)])
def test_a_number_is_of_failed_records(most: int | None, is_too_many: bool) -> None:
    totals = Totals(failed=3, error_codes={"storage": 2, "deadline": 1})
    if not is_too_many:
        totals.check(LimitsSpec(max_errors=most), NUM_ROWS)
        return
    with pytest.raises(TooManyRowErrors, match=r"^3 rows failed \(2 storage, 1 deadline\); limits.max_errors is 2$"):
        totals.check(LimitsSpec(max_errors=most), NUM_ROWS)


@pytest.mark.parametrize("limits", [{"max_error_rate": 0.1}, {"max_errors": 2}])
def test_too_many_failed_rows_end_a_run_as_soon_as_they_are_committed(tmp_path: Path, limits: dict[str, Any]) -> None:
    job = QuietJob(tmp_path)
    job.write_input(NUM_ROWS)
    change = failing(1, 5, 6, 13)
    with pytest.raises(TooManyRowErrors, match=r"^3 "):
        job.run(change=change, part_rows=4, limits=limits)
    assert not (job.out / "_SUCCESS").exists()
    status = job_status(job.root)
    assert (status.state, status.rows, status.failed) == ("failed", 8, 3)
    assert status.error is not None
    assert next(iter(limits)) in status.error
    assert "finish it with --mode resume" in verify(job.root).problems[0]
    with pytest.raises(TooManyRowErrors, match=r"^3 "), job.opened("resume", limits=limits) as run:
        job.commit(run, change)
    report = job.run("resume", change, limits={"max_error_rate": 0.2})
    assert (report.totals.rows, report.totals.failed) == (NUM_ROWS, 4)
    job.verified()


def test_the_final_count_is_held_against_the_limits_too(tmp_path: Path) -> None:
    """As where nothing was left to do."""
    job = QuietJob(tmp_path)
    job.write_input(NUM_ROWS)
    with job.opened() as run:
        job.commit(run, failing(1, 2, 3))
    with job.opened("resume", limits={"max_error_rate": 0.1}) as run, pytest.raises(TooManyRowErrors, match="3 of 20"):
        run.finish()
    assert not (job.out / "_SUCCESS").exists()
    with job.opened("resume", limits={"max_error_rate": 0.15}) as run:
        run.finish()
    job.verified()
