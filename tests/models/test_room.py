"""Whether a model fits its device, as far as headers tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_job.models import room
from ray_job.models.loading import DEMO, model_folder
from ray_job.models.placement import Machine
from ray_job.models.room import shortage, weight_bytes
from ray_job.spec import JobSpec, ModelSpec

GIB = 2**30
DEMO_WEIGHTS = (model_folder(ModelSpec()) / "model.safetensors").stat().st_size


def spec(**sections: Any) -> JobSpec:
    model = {"path": DEMO, **sections.pop("model", {})}
    return JobSpec.from_dict({"input": {"path": "in"}, "output": {"path": "out"}, "model": model, **sections})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of this machine, with so many bytes; without a cluster."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def of(num_bytes: int) -> None:
        monkeypatch.setattr(room, "has_gpu", lambda: num_bytes > 0)
        monkeypatch.setattr(room, "gpu_bytes", lambda: num_bytes)

    return of


def memory(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    machine = Machine(2, num_bytes, num_bytes)
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: machine))


def test_weights_are_counted_in_the_dtype_they_are_loaded_in() -> None:
    folder = model_folder(spec().model)
    in_float32 = weight_bytes(spec(model={"dtype": "float32"}), folder, "cpu")
    assert weight_bytes(spec(), folder, "cuda") == in_float32 // 2
    assert DEMO_WEIGHTS / 2.1 < in_float32 / 2 < DEMO_WEIGHTS * 2.1
    assert weight_bytes(spec(model={"quantization": "int8"}), folder, "cpu") < in_float32 / 3


def test_weights_that_are_quantised_already_count_as_they_are(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F16", "shape": [10, 10], "data_offsets": [0, 200]},
        "b": {"dtype": "I8", "shape": [10, 10], "data_offsets": [200, 300]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(300))
    assert weight_bytes(spec(), tmp_path, "cpu") == 4 * 100 + 100
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    assert weight_bytes(spec(), tmp_path, "cpu") == 0


def test_a_gpu_that_is_too_small_is_said_with_how_many_would_do(gpu: Any) -> None:
    gpu(3 * 2**20)
    text = shortage(spec())
    assert text is not None
    assert text.startswith("model.path: the weights take 0.0 GiB")
    assert "90% of 1 GPU is 0.0 GiB" in text
    assert "set batching.engine: vllm and workers.gpus_per_actor: " in text
    (count,) = [int(word.rstrip(",")) for word in text.split() if word.rstrip(",").isdigit() and word.endswith(",")]
    assert count > 1
    assert shortage(spec(batching={"engine": "vllm"}, workers={"gpus_per_actor": count})) is None
    gpu(GIB)
    assert shortage(spec()) is None


def test_a_machine_that_is_too_small_is_said(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(0)
    memory(monkeypatch, 4 * 2**20)
    text = shortage(spec())
    assert text is not None
    assert "an actor's part of this machine's memory is 0.0 GiB" in text
    assert "gpus_per_actor" not in text
    memory(monkeypatch, GIB)
    assert shortage(spec()) is None
    assert shortage(spec(workers={"min_actors": 1000})) is not None


def test_of_a_cluster_nothing_is_known(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(1)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert shortage(spec()) is None
    monkeypatch.delenv("RAY_ADDRESS")
    gpu(0)
    assert shortage(spec(workers={"gpus_per_actor": 1})) is None
