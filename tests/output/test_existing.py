"""What each mode makes of what lies in the output folder, without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_job.errors import FingerprintMismatch, RayJobError, SpecError
from ray_job.output.manifest import Manifest
from ray_job.output.verify import verify
from ray_job.storage.places import locate

from .conftest import FAILED, record
from .quiet_job import QuietJob

MODES = ["error", "resume", "append", "overwrite"]


@pytest.fixture
def job(tmp_path: Path) -> QuietJob:
    job = QuietJob(tmp_path)
    job.write_input(6)
    return job


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_starts_a_run_where_there_is_none(job: QuietJob, mode: str) -> None:
    report = job.run(mode)
    assert (report.totals.rows, report.already_done) == (6, 0)
    assert job.verified().parts == 2
    manifest = Manifest.read(job.root)
    assert manifest is not None
    assert (manifest.run, manifest.input_rows, len(manifest.inputs)) == (1, 6, 1)


def test_by_default_an_output_is_refused_and_the_message_says_what_can_be_done(job: QuietJob) -> None:
    with job.opened() as run:
        job.commit(run)
    with pytest.raises(SpecError, match=r"a run that was not completed \(in_progress\)\. Finish it with --mode resume"):
        job.opened()
    job.run("resume")
    with pytest.raises(SpecError, match=r"a finished run of 6 rows\. .*, add new rows with --mode append"):
        job.opened()
    (job.out / "_SUCCESS").unlink()
    with pytest.raises(SpecError, match=r"not completed \(finalizing\)"):
        job.opened()


@pytest.mark.parametrize("mode", MODES)
def test_a_folder_of_other_things_is_refused_and_left_alone(job: QuietJob, mode: str) -> None:
    job.out.mkdir()
    (job.out / "thesis.txt").write_text("mine")
    with pytest.raises(SpecError, match=r"has no _manifest\.json, so it is no job's output"):
        job.opened(mode)
    assert [path.name for path in job.out.iterdir() if not path.name.startswith(".")] == ["thesis.txt"]
    with pytest.raises(SpecError, match=r"no job's output here, since it has no _manifest\.json\. Check the path"):
        verify(job.root)


def test_a_damaged_manifest_is_refused_but_for_overwriting(job: QuietJob) -> None:
    job.run()
    (job.out / "_manifest.json").write_text('{"state": "comp')
    for mode in ("error", "resume", "append"):
        with pytest.raises(SpecError, match=r"_manifest\.json is damaged, or of another version"):
            job.opened(mode)
    assert job.run("overwrite").totals.rows == 6
    job.verified()


def test_overwriting_begins_from_nothing(job: QuietJob) -> None:
    job.run(change=lambda row: record(row, FAILED) if row == 1 else {})
    (job.out / "_report.html").write_text("old")
    job.sections = {"prompt": {"system": "Be brief."}}
    with job.opened("overwrite") as run:
        assert (run.number, run.num_left) == (1, 6)
        job.commit(run, part_rows=6)
        assert not (job.out / "_report.html").exists()
        report = run.finish()
    assert (report.totals.rows, report.totals.failed, report.totals.parts) == (6, 0, 1)
    job.verified()


def test_failed_rows_are_retried_on_request_and_their_attempts_are_added(job: QuietJob) -> None:
    job.run(change=lambda row: record(row, FAILED) if row < 3 else {})
    assert job.run("resume", output={"retry_failed": False}).totals.failed == 3
    with job.opened("resume", output={"retry_failed": True}) as run:
        assert (run.num_left, run.number, run.work.needs_ids) == (3, 3, False)
        job.commit(run, lambda row: record(row, FAILED, _rj_attempts=1) if row == 0 else {"_rj_attempts": 1})
        assert run.totals.failed == 1
        report = run.finish()
    assert (report.already_done, report.totals.answered, report.totals.failed) == (3, 5, 1)
    assert report.totals.error_codes == {"storage": 1}
    job.verified()


def test_a_finished_run_with_nothing_left_is_not_touched(job: QuietJob) -> None:
    job.run()
    before = {path: path.stat().st_mtime_ns for path in job.out.rglob("*")}
    for mode in ("resume", "append"):
        with job.opened(mode) as run:
            assert (run.num_left, run.work.needs_ids) == (0, False)
            report = run.finish()
        assert (report.input_rows, report.already_done, report.totals.rows) == (6, 6, 6)
    assert {path: path.stat().st_mtime_ns for path in job.out.rglob("*")} == before


def test_a_foreign_file_in_a_finished_output_is_removed(job: QuietJob) -> None:
    """Nothing else is left to do."""
    job.run()
    foreign = job.out / "data" / "part-00000.parquet"
    pq.write_table(pa.table({"x": [1]}), foreign)
    with job.opened("resume") as run:
        assert (run.num_left, run.work.remaining.num_rows) == (0, 0)
        run.finish()
    assert not foreign.exists()
    job.verified()


def test_what_a_killed_writer_left_is_removed(job: QuietJob) -> None:
    with job.opened() as run:
        job.commit(run)
    left = job.out / "data" / ".part-0001-x.parquet.1234abcd.tmp"
    left.write_text("half a part")
    job.run("resume")
    assert not left.exists()
    job.verified()


def test_a_lost_part_of_a_finished_run_is_done_again(job: QuietJob, caplog: pytest.LogCaptureFixture) -> None:
    job.run()
    job.parts()[0].unlink()
    report = job.run("resume")
    assert (report.already_done, report.totals.rows) in ((2, 6), (4, 6))
    assert "has lost parts since; their rows are done again" in caplog.text
    job.verified()


def test_another_job_is_refused_with_each_field_that_differs(job: QuietJob) -> None:
    job.run()
    with pytest.raises(FingerprintMismatch) as caught:
        job.opened("resume", prompt={"system": "Be brief."}, generation={"max_new_tokens": 7})
    text = str(caught.value)
    assert '  - prompt.system: was null, is "Be brief."' in text
    assert "is 7" in text
    assert "Restore these settings, choose another output.path, or replace the output with --mode overwrite" in text


def test_a_file_in_the_folders_place_is_refused(job: QuietJob) -> None:
    job.out.write_text("mine")
    with pytest.raises((SpecError, RayJobError)):
        job.opened()
    assert job.out.read_text() == "mine"


def test_a_manifest_comes_back_as_it_was_written_and_shows_no_credentials(job: QuietJob) -> None:
    job.run()
    manifest = Manifest.of_output(job.root)
    manifest.write(locate(str(job.folder / "copy")))
    (job.folder / "copy" / "_SUCCESS").touch()
    assert Manifest.of_output(locate(str(job.folder / "copy"))) == manifest
    content = json.loads((job.out / "_manifest.json").read_text())
    assert content["fingerprint"] == manifest.fingerprint
    assert content["spec"]["output"]["path"] == str(job.out)
    assert content["versions"]["pyarrow"]
