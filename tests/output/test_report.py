"""What a finished run tells: sums over its actors, rates, and the tables that people read."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_job.cli import main
from ray_job.output.activity import Activity
from ray_job.output.manifest import Duplicates, Manifest
from ray_job.output.parts import Receipt
from ray_job.output.status import job_status
from ray_job.output.summary import Report
from ray_job.output.totals import Totals
from ray_job.output.verify import Verification
from ray_job.views.html.facts import collect
from ray_job.views.html.page import render

from .conftest import FAILED, record
from .quiet_job import QuietJob


def done(prepare_s: float, **other: float) -> dict[str, float]:
    return {"prepare_s": prepare_s, "decode_s": 2 * prepare_s, "load_s": 3.0, "idle_s": 0.5, **other}


def receipt(write_s: float, **actors: dict[str, float]) -> Receipt:
    return Receipt("p", 1, 1, 0, 0, 0, write_s=write_s, actors=actors)


def test_actors_numbers_are_their_latest_and_are_summed() -> None:
    activity = Activity()
    activity.add(receipt(1.0, a=done(1.0)), 10.0)
    activity.add(receipt(2.0, a=done(4.0), b=done(2.0)), 12.0)
    activity.add(receipt(0.5, a=done(3.0)), 13.0)  # an older block, late
    totals = activity.totals()
    assert (totals["actors"], totals["prepare_s"], totals["decode_s"], totals["write_s"]) == (2, 6.0, 12.0, 3.5)
    assert (totals["first_rows_s"], totals["last_actor_s"], totals["load_s"]) == (10.0, 12.0, 6.0)
    lines = dict(activity.lines())
    assert lines["first rows"] == "after 10.0 s; from all 2 actors after 12.0 s"
    assert lines["time by stage"] == "prepare 6.0 s, vision 0.0 s, prefill 0.0 s, decode 12.0 s, write 3.5 s"
    assert lines["engine idle"] == "1.0 s waiting for rows, after 6.0 s of loading"
    assert "slots in use" not in lines
    assert "reused" not in lines


def test_reuse_and_slots_are_told_where_there_were_any() -> None:
    activity = Activity()
    activity.add(receipt(1.0, a=done(1.0, duplicate_rows=2, waiting_slots=10, waiting_slots_used=9)), 1.0)
    lines = dict(activity.lines())
    assert lines["first rows"] == "after 1.0 s"
    assert lines["slots in use"] == "90.0% while rows waited"
    assert lines["reused"] == "2 duplicate rows"
    activity.add(receipt(1.0, a=done(2.0, pictures_wanted=5, pictures_encoded=2, prefix_tokens_reused=7)), 1.0)
    assert dict(activity.lines())["reused"] == "3 pictures, 7 prompt tokens"
    assert Activity().lines() == []
    assert Activity().totals()["first_rows_s"] == 0.0


def test_a_report_tells_this_runs_rate_and_the_whole_outputs_totals() -> None:
    totals = Totals(30, 28, 2, 300, 90, 3, {"storage": 2})
    report = Report("/out", 30, totals, 4.0, "f00", already_done=10, duplicates=Duplicates(1, 2, ("x",)))
    assert report.rows_per_s == 5.0
    assert (report.to_dict()["rows_per_s"], report.to_dict()["completion_tokens_per_s"]) == (5.0, 22.5)
    assert report.table().splitlines() == [
        "rows           30",
        "already done   10",
        "answered       28",
        "failed         2",
        "  storage      2",
        "repeated ids   1 id comes more than once, in 2 further rows; each row has its own answer: x",
        "prompt tokens  300",
        "answer tokens  90",
        "time           4.0 s",
        "rows/s         5.0",
        "parts          3",
        "output         /out",
    ]


@pytest.fixture
def job(tmp_path: Path) -> QuietJob:
    job = QuietJob(tmp_path)
    job.write_input(6)
    return job


def test_status_tells_what_is_there_and_what_to_do(job: QuietJob) -> None:
    with job.opened() as run:
        job.commit(run, lambda row: record(row, FAILED) if row == 1 else {}, part_rows=3)
        assert "in_progress (running)" in job_status(job.root).table()
    status = job_status(job.root)
    assert (status.state, status.is_alive, status.error, status.run) == ("in_progress", False, None, 1)
    assert (status.rows, status.expected_rows, status.answered, status.failed, status.parts) == (6, 6, 5, 1, 2)
    assert status.error_codes == {"storage": 1}
    assert status.newest_part_age_s is not None
    assert 0 <= status.newest_part_age_s < 100
    table = status.table()
    assert "in_progress (not running; finish it with --mode resume)" in table
    assert "rows         6 of 6" in table
    assert status.to_dict()["fingerprint"] == status.fingerprint
    with job.opened("resume") as run:
        run.finish()
    status = job_status(job.root)
    assert (status.state, status.run, status.is_alive) == ("completed", 2, False)
    assert "completed" in status.table()
    assert "resume" not in status.table()


def test_verify_shows_the_first_problems_and_counts_the_rest() -> None:
    found = Verification("/out", "completed", 3, 2, 1, 1, tuple(f"problem {n}" for n in range(25)))
    lines = found.table().splitlines()
    assert lines[0] == "/out: completed, 3 rows: 2 answered, 1 failed records in 1 parts; 25 problems"
    assert lines[1:21] == [f"  - problem {n}" for n in range(20)]
    assert lines[21:] == ["  - and 5 more"]
    assert (found.is_good, found.to_dict()["ok"]) == (False, False)
    good = Verification("/out", "completed", 3, 2, 1, 1, ())
    assert (good.is_good, len(good.table().splitlines())) == (True, 1)


def test_what_is_skipped_of_the_input_is_told_wherever_a_run_is(
    job: QuietJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("x")
    sections = {"input": {"path": [str(tmp_path / "rows.parquet"), str(tmp_path / "notes.*")], "format": "parquet"}}
    text = "1 file: 1 text (notes.txt)"
    spec = str(job.spec_file("error", **sections))
    assert main(["validate", spec]) == 0
    shown = capsys.readouterr().out
    assert "reads 1 file of format parquet\n" in shown
    assert f"skips {text}\n" in shown
    assert main(["plan", spec]) == 0
    assert f"skipped          {text}\n" in capsys.readouterr().out
    report = job.run(**sections)
    assert f"skipped        {text}" in report.table().splitlines()
    assert report.to_dict()["skipped"] == {"text": {"files": 1, "examples": ["notes.txt"]}}
    manifest = Manifest.read(job.root)
    assert manifest is not None
    assert manifest.skipped == report.skipped
    assert f"Skipped in the input: {text}." in render(collect(str(job.out)))
