"""The end of a run: from its last part to `_SUCCESS`, ended by a signal at each write, and what is told of it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_job import run_job
from ray_job.cli import main
from ray_job.cluster.workers import fit_workers
from ray_job.errors import FingerprintMismatch, Interrupted, RayJobError
from ray_job.output import run as run_module
from ray_job.output.fingerprint import AUTO_DTYPES
from ray_job.output.manifest import Manifest
from ray_job.output.modes import check_fingerprint
from ray_job.output.status import job_status
from ray_job.output.verify import verify

from .deaths import NUM_ROWS, SIGNALS, WRITES
from .quiet_job import DTYPE, QuietJob


@pytest.fixture(scope="module")
def deaths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    folder = tmp_path_factory.mktemp("deaths") / "jobs"
    done = subprocess.run(
        [sys.executable, "-m", "tests.output.deaths", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def is_committing(write: str, when: str) -> bool:
    """Whether the count was found good before a moment of a run."""
    return WRITES.index(write) > WRITES.index("counted")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_run_ended_at_any_write_of_its_end_tells_the_truth_and_is_finished_by_resuming(
    deaths: tuple[Path, dict[str, int]], number: Any, write: str, when: str
) -> None:
    folder, codes = deaths
    job = QuietJob(folder / f"{number.name}-{when}-{write}")
    code, has_marker = codes[job.folder.name], (job.out / "_SUCCESS").exists()
    if number.name == "SIGKILL":
        assert (code, has_marker) == (-number, (write, when) == ("success", "after"))
    else:
        assert (code, has_marker) == ((0, True) if is_committing(write, when) else (75, False))
    status, found = job_status(job.root), verify(job.root)
    assert (status.state == "completed") == has_marker
    assert (status.state == "cancelled") == (number.name != "SIGKILL" and not has_marker)
    assert found.is_good == has_marker, found.table()
    assert (status.rows, found.answered) == (NUM_ROWS, NUM_ROWS), "every part is there and counted"
    if not has_marker:
        assert "_SUCCESS is missing: the run is not finished" in found.table()
    parts = {path: path.read_bytes() for path in job.parts()}

    report = run_job(job.spec("resume"), stream=io.StringIO())
    assert (report.totals.answered, report.already_done) == (NUM_ROWS, NUM_ROWS)
    job.verified()
    assert {path: path.read_bytes() for path in job.parts()} == parts
    manifest = Manifest.read(job.root)
    assert manifest is not None
    assert (manifest.fields["model.dtype"], manifest.fingerprint) == (DTYPE, report.fingerprint)


def test_a_run_that_finds_nothing_left_keeps_the_dtype_that_was_settled(
    deaths: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    folder, codes = deaths
    begun = QuietJob(folder / "begun")
    assert codes["begun"] == -9
    before = job_status(begun.root).fingerprint
    report = run_job(begun.spec("resume"), stream=io.StringIO())
    assert report.fingerprint == job_status(begun.root).fingerprint == before
    begun.write_input(NUM_ROWS + 2)
    with begun.opened("append") as run, pytest.raises(FingerprintMismatch, match='was "float32", is "bfloat16"'):
        run.begin("bfloat16")
    with pytest.raises(FingerprintMismatch, match='was "float32", is "bfloat16"'):
        begun.opened("append", model={"dtype": "bfloat16"})


def test_validate_shows_the_fingerprint_that_status_will_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = QuietJob(tmp_path)
    job.write_input(4)
    spec = job.spec()
    settled = {"CPU": fit_workers(spec, 4, 0, False).dtype, "GPU": fit_workers(spec, 4, 1, False).dtype}
    assert settled == AUTO_DTYPES
    assert main(["validate", str(job.spec_file("error"))]) == 0
    shown = capsys.readouterr().out
    fingerprint = job.run().fingerprint
    assert f"fingerprint {fingerprint} on CPUs or " in shown
    assert job_status(job.root).fingerprint == fingerprint
    assert main(["validate", str(job.spec_file("error", model={"dtype": DTYPE}))]) == 0
    assert capsys.readouterr().out.endswith(f"fingerprint {fingerprint}\n")
    assert main(["validate", str(job.spec_file("error", model={"dtype": "bfloat16"}))]) == 0
    assert capsys.readouterr().out.split()[-1] == shown.split(" or ")[1].split()[0]


Write = Callable[..., None]


@pytest.mark.parametrize(("name", "state"), [("_SUCCESS", "completed"), ("_report.json", "cancelled")])
def test_an_interrupt_that_is_not_held_back_changes_nothing_once_the_run_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, state: str
) -> None:
    """As in a notebook's thread, whose signals are not the job's."""
    job = QuietJob(tmp_path)
    job.write_input(4)
    writers: dict[str, Write] = {"write_whole": run_module.write_whole, "write_json": run_module.write_json}

    def interrupted(write: Write) -> Write:
        def call(root: Any, written: str, data: Any) -> None:
            write(root, written, data)
            if written == name:
                raise Interrupted("now")

        return call

    with monkeypatch.context() as patch:
        for writer, write in writers.items():
            patch.setattr(run_module, writer, interrupted(write))
        with pytest.raises(Interrupted):
            job.run()
    assert job_status(job.root).state == state
    assert verify(job.root).is_good == (state == "completed")
    run_job(job.spec("resume"), stream=io.StringIO())
    job.verified()


def test_a_disk_that_fills_at_the_very_end_leaves_a_failed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = QuietJob(tmp_path)
    job.write_input(4)

    def full(*_: Any) -> None:
        raise RayJobError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_whole", full)
        with pytest.raises(RayJobError, match="no space"):
            job.run()
    status = job_status(job.root)
    assert (status.state, status.error) == ("failed", "no space")
    run_job(job.spec("resume"), stream=io.StringIO())
    job.verified()


def test_a_changed_engine_is_refused_with_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = QuietJob(tmp_path)
    job.write_input(4)
    job.run()
    manifest = Manifest.read(job.root)
    assert manifest is not None
    version = manifest.fields["engine_version"]
    monkeypatch.setattr("ray_job.output.fingerprint.ENGINE_VERSION", version + 1)
    with pytest.raises(FingerprintMismatch, match=f"  - engine_version: was {version}, is {version + 1}\n"):
        job.opened("resume")
    check_fingerprint(job.root, manifest, manifest.fields)
    job.run("overwrite")
    job.verified()


def test_finalizing_is_what_a_run_is_while_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = QuietJob(tmp_path)
    job.write_input(6)
    seen = []
    find = run_module.find_duplicates

    def counting(ledger: Any) -> Any:
        seen.append(job_status(job.root))
        return find(ledger)

    monkeypatch.setattr(run_module, "find_duplicates", counting)
    job.run()
    (status,) = seen
    assert (status.state, status.is_alive, status.rows, status.expected_rows) == ("finalizing", True, 6, 6)
    assert "finalizing (running)" in status.table()
    assert job_status(job.root).state == "completed"
