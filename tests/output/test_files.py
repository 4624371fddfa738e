"""Whole files or none: full disks, killed writers, locks; and trying again."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from ray_job.cluster.signals import interruptible
from ray_job.errors import Interrupted, RayJobError, SpecError
from ray_job.output.lock import Lock, is_locked
from ray_job.storage.places import Location, locate
from ray_job.storage.retrying import Retrying
from ray_job.storage.whole_files import is_empty, part_files, read_text, remove_leftovers, write_whole

from .quiet_job import QuietJob


def test_a_full_disk_leaves_the_old_file_and_no_half_one(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(root, "data/part-1.parquet", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for name in ("data/part-1.parquet", "data/part-2.parquet"):
        with pytest.raises(RayJobError, match=r"cannot be written: No space left on device\. Make room"):
            write_whole(root, name, b"new")
    assert [path.name for path in Path(root.path, "data").iterdir()] == ["part-1.parquet"]
    assert read_text(root, "data/part-1.parquet") == "old"


def test_a_killed_writer_leaves_a_hidden_file_that_counts_for_nothing(root: Location) -> None:
    code = (
        "import os, signal, sys\nfrom ray_job.storage.places import locate\n"
        "from ray_job.storage.whole_files import write_whole\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_whole(locate(sys.argv[1]), 'data/part-1.parquet', b'x' * 1000)"
    )
    assert subprocess.run([sys.executable, "-c", code, root.path], check=False).returncode == -signal.SIGKILL
    (left,) = Path(root.path, "data").iterdir()
    assert left.name.startswith(".")
    assert part_files(root, "data") == []
    Path(root.path, "data", ".mine").write_text("precious")
    remove_leftovers(root)
    assert [path.name for path in Path(root.path, "data").iterdir()] == [".mine"]


def test_hidden_files_leave_a_folder_empty_and_a_file_is_no_folder(root: Location) -> None:
    assert is_empty(root)
    Lock.take(root).close()
    assert is_empty(root)
    with pytest.raises(RayJobError, match="is a file"):
        is_empty(root.at(f"{root.path}/.lock"))


def test_one_run_at_a_time(root: Location) -> None:
    assert is_locked(root) is None
    lock = Lock.take(root)
    assert is_locked(root) is True
    with pytest.raises(SpecError, match="another run is writing"):
        Lock.take(root)
    lock.close()
    assert is_locked(root) is False
    Lock.take(root).close()


def test_a_file_system_without_locks_is_written_to(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", none)
    lock = Lock.take(root)
    assert is_locked(root) is None
    Lock.take(root).close()
    lock.close()


class Flaky(fs.LocalFileSystem):  # type: ignore[misc]
    """Fails to open a file for writing a few times, as a store that is overloaded."""

    failures = 2

    def open_output_stream(self, path: str, **options: Any) -> Any:
        if Flaky.failures:
            Flaky.failures -= 1
            raise OSError("AWS Error SLOW_DOWN during PutObject operation")
        return super().open_output_stream(path, **options)


def test_a_store_that_comes_back_is_written_to(root: Location) -> None:
    Path(root.path).mkdir()
    write_whole(Location(Flaky(), root.path, "s3"), "part", b"x")
    assert read_text(root, "part") == "x"


def test_retrying_is_bounded_and_only_for_what_passes() -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise OSError("no")

    retrying = Retrying(3, first_wait_s=0.001)
    with pytest.raises(OSError, match="no"):
        retrying(fail, lambda error: True)
    assert (len(calls), retrying.num_retries) == (3, 2)
    with pytest.raises(OSError, match="no"):
        Retrying(3)(fail, lambda error: False)
    assert len(calls) == 4


def send(number: signal.Signals, after_s: float) -> None:
    threading.Timer(after_s, lambda: os.kill(os.getpid(), number)).start()


def test_the_first_signal_closes_the_gate_and_the_second_ends_at_once() -> None:
    closed = threading.Event()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM; .*--mode resume"), interruptible(30.0) as stop:  # noqa: PT012
        stop.arm(closed.set)
        send(signal.SIGTERM, 0.05)
        assert closed.wait(5)
        stop.check(num_left=0)
        with pytest.raises(Interrupted, match="3 rows are left"):
            stop.check(num_left=3)
        send(signal.SIGINT, 0.05)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_grace_period_ends_and_without_one_a_signal_ends_at_once() -> None:
    for grace_s, message in ((0.2, r"given up after limits\.grace_s, 0\.2 s"), (0.0, "were given up")):
        started_s = time.monotonic()
        with pytest.raises(Interrupted, match=message), interruptible(grace_s) as stop:  # noqa: PT012
            stop.arm(lambda: None)
            send(signal.SIGTERM, 0.05)
            time.sleep(5)
        assert time.monotonic() - started_s < 4


def synced_folders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are synced from here on, in order."""
    synced: list[str] = []
    sync = os.fsync

    def noting(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if os.path.isdir(path):
            synced.append(path)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    return synced


def test_the_entry_of_each_new_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = locate(str(tmp_path / "a" / "b" / "out"))
    synced = synced_folders(monkeypatch)
    write_whole(root, "data/part-1.parquet", b"x")
    assert synced == [str(tmp_path / path) for path in (".", "a", "a/b", "a/b/out", "a/b/out/data")]
    synced.clear()
    write_whole(root, "data/part-2.parquet", b"x")
    assert synced == [str(tmp_path / "a/b/out/data")]
    synced.clear()
    write_whole(root, "errors/part-2.parquet", b"x")
    assert synced == [str(tmp_path / "a/b/out"), str(tmp_path / "a/b/out/errors")]


def test_the_folder_a_run_locks_is_synced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = synced_folders(monkeypatch)
    Lock.take(locate(str(tmp_path / "new" / "out"))).close()
    assert synced == [str(tmp_path), str(tmp_path / "new")]


def test_folders_are_synced_before_a_run_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may have found a folder that another had made and not yet synced."""
    job = QuietJob(tmp_path)
    job.write_input(4)
    with job.opened() as run:
        job.commit(run)
        synced = synced_folders(monkeypatch)
        before: list[list[str]] = []
        replace = os.replace

        def noting(old: str, new: str) -> None:
            before.append(list(synced))
            replace(old, new)

        monkeypatch.setattr(os, "replace", noting)
        run.finish()
    assert {str(job.out), str(job.out / "data"), str(job.out / "errors")} <= set(before[-1])


def test_a_folder_that_may_not_be_listed_is_written_to() -> None:
    code = (
        "import os, sys\nfrom ray_job.storage.places import locate\n"
        "from ray_job.storage.whole_files import write_whole\n"
        "os.getuid() or os.setuid(65534)\n"  # root may list it
        "write_whole(locate(sys.argv[1]), 'part', b'x')"
    )
    with tempfile.TemporaryDirectory() as name:
        dropbox = Path(name)
        if os.getuid() == 0:
            os.chown(dropbox, 65534, -1)
        dropbox.chmod(0o300)
        subprocess.run([sys.executable, "-c", code, str(dropbox / "out")], check=True)
        dropbox.chmod(0o700)
        assert (dropbox / "out" / "part").read_bytes() == b"x"


def test_a_path_through_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RayJobError, match=r"cannot be written: .*Make room or set output\.path"):
        write_whole(locate(str(tmp_path / "file" / "out")), "part", b"x")
    with pytest.raises(SpecError, match=r"output\.path: .* cannot be written"):
        Lock.take(locate(str(tmp_path / "file" / "out")))


def test_a_signal_while_a_run_is_committed_changes_nothing() -> None:
    with interruptible(0.05) as stop:
        stop.arm(lambda: None)
        os.kill(os.getpid(), signal.SIGTERM)  # the first: its grace period runs
        stop.ignore()
        time.sleep(0.2)  # beyond its end
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
    with pytest.raises(Interrupted), interruptible(0.1):
        os.kill(os.getpid(), signal.SIGINT)
