"""What Ray runs in each worker that a test starts: pictures that end vLLM's process, and a place where it waits."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from ray_job.models.phi3_vision.processor import PIXELS
from ray_job.models.vllm import loading
from ray_job.rows import Result, Sample

CRASH, KILL = (1, 2, 3), (3, 2, 1)  # colours of pictures
FOLDER = "TEST_VLLM_FOLDER"
FREE_RESULTS = 12  # given before it waits for the file `go`


def install() -> None:
    """Changes the engine that is loaded, and imports none."""
    load = loading.load_vllm_engine

    def load_deadly(*args: Any, **kwargs: Any) -> Any:
        engine = load(*args, **kwargs)
        rendered, step = engine._rendered, engine.step
        folder = Path(os.environ[FOLDER])
        num_results = 0
        (folder / "pid").write_text(str(os.getpid()))

        def deadly_rendered(sample: Sample) -> Any:
            for picture in sample.pictures:
                die(tuple(picture.arrays[PIXELS][0, 0].tolist()))
            return rendered(sample)

        def waiting_step() -> list[Result]:
            nonlocal num_results
            results: list[Result] = step()
            num_results += len(results)
            while num_results >= FREE_RESULTS and not (folder / "go").exists():
                (folder / "waits").touch()
                time.sleep(0.05)
            return results

        engine._rendered, engine.step = deadly_rendered, waiting_step
        return engine

    loading.load_vllm_engine = load_deadly


def die(colour: tuple[int, ...]) -> None:
    if colour == CRASH:
        signal.raise_signal(signal.SIGSEGV)  # as a fault in a processor's native code
    elif colour == KILL:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000)
