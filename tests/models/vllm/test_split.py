"""A model split over processes of vLLM's: they answer as one does, and none outlives the actor. Needs vLLM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ray_job.bench.agreement import samples
from ray_job.engine.interface import run
from ray_job.models.engines import load_engine
from ray_job.models.loading import load_processor
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor
from ray_job.spec import JobSpec, ModelSpec

from .conftest import PLACEMENT

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("victim", ["actor", "part"])
def test_a_split_model_answers_and_dies_as_one(victim: str, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    command = [sys.executable, "-m", "tests.models.vllm.split"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT) as actor,
    ):
        assert actor.stdout is not None
        said = next((line for line in actor.stdout if line.startswith("{")), None)
        assert said is not None, (tmp_path / "log").read_text()
        found = json.loads(said)
        parts = [psutil.Process(pid) for pid in found["parts"]]
        assert len(parts) == 2
        try:
            assert found["answers"] == ours()
        finally:
            os.kill(actor.pid if victim == "actor" else parts[1].pid, signal.SIGKILL)
        code = actor.wait(120)
    assert code == (-signal.SIGKILL if victim == "actor" else 3)
    assert psutil.wait_procs(parts, timeout=60)[1] == []


def ours() -> dict[str, str | None]:
    """Our own engine's answers."""
    processor = load_processor(ModelSpec())
    assert isinstance(processor, Phi3VisionProcessor)
    engine = load_engine(JobSpec.from_dict({"input": {"path": "in"}, "output": {"path": "out"}}), PLACEMENT)
    return {str(result.key): result.text for result in run(engine, samples(processor, 12))}
