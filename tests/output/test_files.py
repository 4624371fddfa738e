"""Whole files or none: full disks, killed writers, locks; and trying again."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from ray_job.cluster.signals import interruptible
from ray_job.errors import Interrupted, RayJobError, SpecError
from ray_job.output.lock import Lock, is_locked
from ray_job.storage.places import Location
from ray_job.storage.retrying import Retrying
from ray_job.storage.whole_files import is_empty, part_files, read_text, remove_leftovers, write_whole


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
