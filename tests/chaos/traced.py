"""What Ray runs in each worker of the chaos jobs: the engine answers slowly and notes what it computed."""

from __future__ import annotations

import os
import time

from ray_job.engine.noop import NoOpEngine
from ray_job.rows import Result

from .poison import answer

TRACE = "CHAOS_TRACE"
STEP_S = 0.02


def install() -> None:
    """Gives each answer a text that its prompt decides, and appends the rows of each step to a file."""
    step, trace = NoOpEngine.step, os.environ[TRACE]

    def traced_step(engine: NoOpEngine) -> list[Result]:
        texts = {sample.key: answer(sample) for sample in engine._waiting}
        time.sleep(STEP_S)
        with open(trace, "a") as stream:
            stream.write(f"{len(texts)}\n")
        return [Result(r.key, text=texts[r.key], finish_reason=r.finish_reason) for r in step(engine)]

    NoOpEngine.step = traced_step  # type: ignore[method-assign]
