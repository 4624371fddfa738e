"""Small jobs of text rows in this process, and what a process has that a job might change."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.data import DataContext

from ray_job import JobSpec, run_job
from ray_job.errors import Interrupted, TooManyRowErrors
from ray_job.output.verify import verify
from ray_job.storage.places import locate

_MANY = 100_000  # rows that outlast the test


def job(folder: Path, num_rows: int, num_bad: int = 0, **limits: Any) -> JobSpec:
    """Text rows, the first of them without a prompt."""
    folder.mkdir(parents=True)
    questions = [None if row < num_bad else "what?" for row in range(num_rows)]
    pq.write_table(pa.table({"id": range(num_rows), "question": questions}), folder / "rows.parquet")
    return JobSpec.from_dict(
        {
            "input": {"path": str(folder / "rows.parquet"), "id_column": "id", "image_columns": []},
            "model": {"path": "builtin:noop"},
            "batching": {"block_rows": 8},
            "limits": limits,
            "output": {"path": str(folder / "out"), "part_rows": 16},
        }
    )


def run(spec: JobSpec) -> int:
    """Rows of a finished output, which is verified."""
    report = run_job(spec, stream=io.StringIO())
    found = verify(locate(spec.output.path))
    assert found.is_good, found.table()
    return report.totals.answered


def run_side_by_side(folder: Path, sizes: tuple[int, ...]) -> list[int | Exception]:
    """What jobs on threads of their own came to."""
    ends: dict[int, int | Exception] = {}

    def work(size: int) -> None:
        try:
            ends[size] = run(job(folder / str(size), size, no_progress_s=1000.0 + size))
        except Exception as error:
            ends[size] = error

    threads = [threading.Thread(target=work, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [ends[size] for size in sizes]


def succeed(folder: Path) -> None:
    assert run(job(folder, 64)) == 64


def fail(folder: Path) -> None:
    with pytest.raises(TooManyRowErrors):
        run(job(folder, _MANY, num_bad=40, max_errors=1))


def be_interrupted(folder: Path) -> None:
    spec = job(folder, 2000, grace_s=60.0)  # few enough to pass the stages, unanswered, within that time

    def interrupt() -> None:
        while not list(folder.glob("out/data/part-*")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Interrupted, match="rows are left"):
        run(spec)


ENDINGS: tuple[Callable[[Path], None], ...] = (succeed, fail, be_interrupted)


def settings() -> dict[str, Any]:
    """What a process has that a job might change."""
    loggers = logging.root.manager.loggerDict
    return {
        "environment": dict(os.environ),
        "context": {name: repr(value) for name, value in vars(DataContext.get_current()).items()},
        "loggers": {
            name: (logger.level, logger.propagate, list(logger.handlers))
            for name, logger in loggers.items()
            if isinstance(logger, logging.Logger)
        },
        "root logger": (logging.root.level, list(logging.root.handlers)),
        "warnings": list(warnings.filters),
        "handlers": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)},
        "hook": sys.excepthook,
        "stderr": os.fstat(2).st_ino,
        "threads": sorted(thread.name for thread in threading.enumerate() if thread.name not in _RAYS_OWN_THREADS),
    }


_RAYS_OWN_THREADS = ("ray_listen_error_messages", "ray_print_logs", "PythonGCThread")  # of the user's own connection


def leaves_as_it_was(work: Callable[[Path], None], folder: Path) -> None:
    warm = folder / "warm"
    assert run(job(warm, 16)) == 16  # imports what is imported once for all
    before = settings()
    work(folder / "work")
    after = settings()
    after["loggers"] = {name: after["loggers"][name] for name in before["loggers"]}  # others may have been made
    assert after == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
