"""Rows that end the process they run in: what Ray runs in each of a test cluster's workers when it starts."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Mapping
from typing import Any

from ray_job.engine.noop import NoOpEngine
from ray_job.errors import ErrorCode
from ray_job.rows import Result, Sample
from ray_job.stages.prepare import Prepared, Preparer

CRASH, KILL, HANG, HANG_NATIVE, RAISE = range(1, 6)  # told to the engine by a row's own seed
PREPARE_CRASH, PREPARE_HANG = "crash while it is prepared", "hang while it is prepared"  # told by its question
CODES = {
    CRASH: ErrorCode.WORKER_KILLED,
    KILL: ErrorCode.WORKER_KILLED,
    HANG: ErrorCode.DEADLINE,
    HANG_NATIVE: ErrorCode.WORKER_KILLED,  # nobody is left to say why
    RAISE: ErrorCode.GENERATION_FAILED,
    PREPARE_CRASH: ErrorCode.WORKER_KILLED,
    PREPARE_HANG: ErrorCode.DEADLINE,
}


def install() -> None:
    """Makes rows deadly, and answers depend on their prompts."""
    step, row = NoOpEngine.step, Preparer.row

    def deadly_step(engine: NoOpEngine) -> list[Result]:
        samples = {sample.key: sample for sample in engine._waiting}
        for sample in samples.values():
            die(sample.params.seed)
        return [Result(**{**_fields(result), "text": answer(samples[result.key])}) for result in step(engine)]

    def deadly_row(preparer: Preparer, values: Mapping[str, Any], *, headers_only: bool = False) -> Prepared:
        die({PREPARE_CRASH: CRASH, PREPARE_HANG: HANG}.get(values.get("question", ""), 0))
        return row(preparer, values, headers_only=headers_only)

    NoOpEngine.step = deadly_step  # type: ignore[method-assign]
    Preparer.row = deadly_row  # type: ignore[method-assign]


def answer(sample: Sample) -> str:
    return f"{len(sample.input_ids)} tokens that sum to {sum(sample.input_ids)}"


def die(how: int) -> None:
    if how == CRASH:
        signal.raise_signal(signal.SIGSEGV)  # in this very thread, as a fault in native code does
    elif how == KILL:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000)
    elif how == HANG:
        time.sleep(1000)
    elif how == HANG_NATIVE:
        re.match("(a+)+$", "a" * 60 + "b")  # holds the interpreter's lock for ever
    elif how == RAISE:
        raise ZeroDivisionError("a bug of the engine")


def _fields(result: Result) -> dict[str, Any]:
    return {name: getattr(result, name) for name in Result.__slots__}
