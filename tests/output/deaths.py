"""Ends a run by a signal at each write of its end: `python -m tests.output.deaths FOLDER`.

Each case is a fork of this process that resumes an output with nothing left to do, by the real command; around one of
its writes it sends itself a signal. Prints one JSON object: case → exit code, negative for a signal.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from ray_job.cli import main

from .quiet_job import QuietJob

WRITES = ("in_progress", "finalizing", "empty_part", "counted", "report", "completed", "success")
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
NUM_ROWS = 10


def run(folder: Path) -> dict[str, int]:
    folder.mkdir()
    begun = QuietJob(folder / "begun")
    begun.folder.mkdir()
    begun.write_input(NUM_ROWS)
    codes = {"begun": _in_fork(lambda: _die_behind_the_last_part(begun))}
    for number in SIGNALS:
        for write, name in enumerate(WRITES):
            for when in ("before", "after"):
                job = QuietJob(folder / f"{number.name}-{when}-{name}")
                shutil.copytree(begun.folder, job.folder)
                spec = job.spec_file("resume")
                codes[job.folder.name] = _in_fork(lambda: _resume(spec, number, write, when))  # noqa: B023
    return codes


def _die_behind_the_last_part(job: QuietJob) -> int:
    with job.opened() as opened:
        job.commit(opened)
        os.kill(os.getpid(), signal.SIGKILL)
    return 0


def _resume(spec: Path, number: signal.Signals, write: int, when: str) -> int:
    replace, num_writes = os.replace, 0

    def hooked(old: str, new: str) -> None:
        nonlocal num_writes
        is_it, num_writes = num_writes == write, num_writes + 1
        if is_it and when == "before":
            os.kill(os.getpid(), number)
        replace(old, new)
        if is_it and when == "after":
            os.kill(os.getpid(), number)

    os.replace = hooked  # type: ignore[assignment]
    code = main(["run", str(spec)])
    assert code or num_writes == len(WRITES), "a write that this test does not know"
    return code


def _in_fork(life: Callable[[], int]) -> int:
    """What a child process that does this ends with."""
    child = os.fork()
    if not child:
        code = 99
        try:
            os.dup2(2, 1)  # standard output is the result's
            code = life()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]))))
