"""Device, dtype, threads and memory: settled from the spec and the machine, and obeyed by whoever loads a model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ray_job.engine.interface import run
from ray_job.errors import ModelError, SpecError
from ray_job.models import placement
from ray_job.models.cuda import Cuda, driver_version, has_gpu
from ray_job.models.engines import load_engine
from ray_job.models.loading import load_model, load_processor
from ray_job.models.phi3_vision import weights
from ray_job.models.phi3_vision.image_processing import hd_size, max_image_tokens, num_image_tokens
from ray_job.models.phi3_vision.processor import PIXELS
from ray_job.models.placement import Machine, Placement, settle_device, settle_dtype, settle_threads
from ray_job.models.threads import restore_threads
from ray_job.rows import Picture, Sample
from ray_job.spec import GenerationParams, JobSpec, ModelSpec, WorkersSpec

GIB = 2**30
MACHINE = Machine(cpus=16, available_bytes=64 * GIB, first_bytes=64 * GIB)


def spec(**sections: Any) -> JobSpec:
    return JobSpec.from_dict({"input": {"path": "in"}, "output": {"path": "out"}, **sections})


class _LoadedError(Exception):
    """Ends a test where weights would be loaded."""


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    """One at the start of a test; and what it sets does not reach others."""
    with ExitStack() as session:
        restore_threads(session)
        torch.set_num_threads(1)
        yield


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What weights are loaded with."""
    found: dict[str, Any] = {}

    def load(folder: Path, **options: Any) -> None:
        found.update(options)
        raise _LoadedError

    monkeypatch.setattr(weights, "load", load)
    return found


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch as on a machine with GPUs, as far as it is asked whether there are any."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)


@pytest.mark.parametrize(
    ("model", "workers", "device", "dtype"),
    [
        ({}, {"gpus_per_actor": 0}, "cpu", torch.float32),
        ({"device": "cpu"}, {}, "cpu", torch.float32),
        ({"device": "cpu"}, {"gpus_per_actor": 0}, "cpu", torch.float32),
        ({"dtype": "bfloat16"}, {"gpus_per_actor": 0}, "cpu", torch.bfloat16),
        ({}, {}, "cuda", torch.bfloat16),
        ({"device": "cuda"}, {}, "cuda", torch.bfloat16),
        ({}, {"gpus_per_actor": 0.5}, "cuda", torch.bfloat16),
        ({"dtype": "float16"}, {"gpus_per_actor": 1}, "cuda", torch.float16),
    ],
)
def test_others_gpus_are_left_alone_and_ones_own_is_used(
    model: dict[str, Any],
    workers: dict[str, Any],
    device: str,
    dtype: torch.dtype,
    asked: dict[str, Any],
    gpu_machine: None,
) -> None:
    with pytest.raises(_LoadedError):
        load_model(spec(model=model, workers=workers))
    assert (asked["device"], asked["dtype"]) == (device, dtype)


def test_what_the_driver_settled_is_obeyed(asked: dict[str, Any], gpu_machine: None) -> None:
    """Whatever the actor itself would have found."""
    with pytest.raises(_LoadedError):
        load_engine(spec(), Placement("cpu", "float16", threads=3, memory_bytes=GIB))
    assert (asked["device"], asked["dtype"], torch.get_num_threads()) == ("cpu", torch.float16, 3)


@pytest.mark.parametrize("gpus", [0, "auto"])
def test_an_actor_on_a_cpu_never_touches_cuda(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From loading to a picture's answer; Ray leaves all GPUs visible to an actor that asks for none."""
    load_engine(spec(model={"device": "cpu"}))  # what is imported for it may look; we may not
    touched: list[str] = []

    def trap(name: str) -> Callable[..., Any]:
        def touch(*_: object, **__: object) -> None:
            touched.append(name)
            raise AssertionError(f"torch.cuda.{name} was called")

        return touch

    for name in ("is_available", "is_bf16_supported", "_lazy_init", "init", "mem_get_info", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, trap(name))
    for name in ("current_device", "device_count", "get_device_capability", "synchronize", "memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, trap(name))
    job = spec(model={"device": "auto" if gpus == 0 else "cpu"}, workers={"gpus_per_actor": gpus, "threads": 1})
    processor = load_processor(job.model)
    pixels = processor.picture(Image.fromarray(np.full((40, 50, 3), 90, np.uint8)))
    prompt = processor.encode([], [])
    input_ids = [*prompt, *[-1] * processor.image_tokens(50, 40), *prompt]
    for engine in ("continuous", "static"):
        chosen = job.model_copy(update={"batching": job.batching.model_copy(update={"engine": engine})})
        sample = Sample(0, input_ids, [Picture(b"digest", {PIXELS: pixels})], GenerationParams(max_new_tokens=3))
        (result,) = run(load_engine(chosen), [sample])
        assert (result.error, result.completion_tokens > 0) == (None, True)
    assert touched == []


@pytest.mark.skipif(torch.version.cuda is not None, reason="of a torch that is built without CUDA")
@pytest.mark.parametrize("sections", [{"workers": {"gpus_per_actor": 1}}, {"model": {"device": "cuda"}}])
def test_a_gpu_that_torch_cannot_use_is_an_error_that_says_why(sections: dict[str, Any]) -> None:
    with pytest.raises(ModelError) as caught:
        load_engine(spec(**sections))
    message = str(caught.value)
    assert f"torch {torch.__version__} is built without CUDA; the NVIDIA driver was not found" in message
    assert "Torch not compiled with CUDA enabled" in message
    assert "set workers.gpus_per_actor: 0" in message


def test_cuda_that_fails_only_when_it_is_used_is_the_same_error(
    gpu_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that torch finds and has no kernels for."""

    def load(folder: Path, **_: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors …")

    monkeypatch.setattr(weights, "load", load)
    with pytest.raises(
        ModelError, match=r"cannot use one: CUDA error: no kernel image is available .* torch 2.*driver"
    ):
        load_model(spec(workers={"gpus_per_actor": 1}))


def test_the_error_names_both_versions() -> None:
    cuda = Cuda(False, "2.13.0+cu130", "13.0", "535.104.05", "The NVIDIA driver on your system is too old")
    text = str(cuda.error())
    assert "torch 2.13.0+cu130 is built for CUDA 13.0; the NVIDIA driver is 535.104.05" in text
    assert "too old" in text


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC: 12",
            "535.104.05",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86  Release Build  (a@b)\n", "570.86"),
        (None, None),
    ],
)
def test_the_drivers_version_is_read_from_its_kernel_module(
    text: str | None, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if text is not None:
        (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
        (tmp_path / "proc/driver/nvidia/version").write_text(text)
    assert driver_version(tmp_path) == version


def test_without_its_files_the_driver_is_asked_by_its_own_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 551.23\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert driver_version(tmp_path) == "551.23"


def test_a_gpu_that_is_there_and_not_usable_is_no_reason_for_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` in a notebook: the machine has a GPU, and torch was built for another."""
    (tmp_path / "dev").mkdir()
    assert not has_gpu(tmp_path)
    for name in ("nvidiactl", "nvidia-uvm", "nvidia0"):
        (tmp_path / "dev" / name).touch()
    assert has_gpu(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not has_gpu(tmp_path), "hidden on purpose"
    monkeypatch.setattr("ray_job.models.cuda.has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="torch cannot use one"):
        load_engine(spec())
    assert Placement.local(spec(workers={"gpus_per_actor": 0})).device == "cpu"


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [
        ("cuda", 0, "the actor would have no GPU to compute on; leave one of them at auto"),
        ("cpu", 1, "the GPU would be reserved and not used; leave one of them at auto"),
        ("cpu", 0.5, "workers.gpus_per_actor is 0.5"),
    ],
)
def test_a_device_and_gpus_that_contradict_each_other_are_refused(device: str, gpus: float, message: str) -> None:
    with pytest.raises(SpecError, match=f"model.device is {device} and .*{message}"):
        spec(model={"device": device}, workers={"gpus_per_actor": gpus})
    assert spec(model={"device": device}).model.device == device
    assert spec(model={"device": "cuda"}, workers={"gpus_per_actor": 0.5})


def test_dtypes_follow_the_device_unless_they_are_given() -> None:
    assert [settle_device(gpus) for gpus in (0, 0.25, 1)] == ["cpu", "cuda", "cuda"]
    assert settle_dtype(ModelSpec(), "cpu") == "float32"
    assert settle_dtype(ModelSpec(), "cuda") == "bfloat16"
    assert settle_dtype(ModelSpec(dtype="float16"), "cpu") == "float16"


@pytest.mark.parametrize(
    ("workers", "cpus", "num_actors", "threads"),
    [
        ({}, 16, 1, 16),
        ({}, 16, 5, 3),
        ({}, 2, 4, 1),
        ({}, 1.5, 1, 1),  # a quota of one and a half
        ({"cpus_per_actor": 8}, 16, 1, 8),
        ({"cpus_per_actor": 0.5}, 16, 1, 1),
        ({"cpus_per_actor": 8}, 4, 1, 4),  # Ray was told of more CPUs than there are
        ({"cpus_per_actor": 8, "threads": 3}, 16, 1, 3),
        ({"threads": 20}, 16, 4, 20),
    ],
)
def test_threads_are_an_actors_part_of_its_machine(
    workers: dict[str, Any], cpus: float, num_actors: int, threads: int
) -> None:
    machine = Machine(cpus, GIB, GIB, num_actors)
    assert settle_threads(WorkersSpec(**workers), machine) == threads


def test_a_local_actor_has_what_its_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "usable_cpus", lambda: 12.0)
    monkeypatch.setattr(placement, "available_bytes", lambda: 24 * GIB)
    job = spec(model={"device": "cpu"}, workers={"min_actors": 4})
    assert Placement.local(job) == Placement("cpu", "float32", 12, 24 * GIB, 0.0)


def test_an_actors_memory_does_not_depend_on_when_it_comes() -> None:
    """Four of 16 GiB each; the last one starts when the others hold 12 each, and restarts when they hold all theirs."""
    parts = [Machine(16, available * GIB, 64 * GIB, 4).bytes_per_actor for available in (64, 28, 16)]
    assert parts == [16 * GIB] * 3
    assert Machine(16, 9 * GIB, 64 * GIB, 4).bytes_per_actor == 9 * GIB, "another program came"


@pytest.mark.parametrize("num_crops", [1, 2, 4, 9, 16])
@pytest.mark.parametrize("side", [2, 12])
def test_the_largest_picture_is_the_one_with_most_tokens_of_any_size(num_crops: int, side: int) -> None:
    sizes = [hd_size(width, height, num_crops) for width in range(20, 1500, 90) for height in range(20, 1500, 90)] + [
        hd_size(100, 100 * num_crops, num_crops),
        hd_size(100 * num_crops, 100, num_crops),
    ]
    most = max(num_image_tokens(size.rows, size.cols, side) for size in sizes)
    assert max_image_tokens(num_crops, side) == most


def test_the_smallest_pool_holds_the_prompt_of_one_full_size_picture() -> None:
    """With no memory to plan with at all; Phi-3-Vision's 16 crops take up to 2,653 tokens."""
    assert max_image_tokens(16) == 2653
    job = spec(model={"device": "cpu", "num_crops": 16}, generation={"max_new_tokens": 50})
    engine = load_engine(job, Placement("cpu", "float32", threads=1, memory_bytes=0))
    most = load_processor(job.model).max_image_tokens
    assert engine.stats().max_tokens == most + 1024 + 50
    given = job.model_copy(update={"batching": job.batching.model_copy(update={"max_batch_tokens": 500})})
    engine = load_engine(given, Placement("cpu", "float32", threads=1, memory_bytes=64 * GIB))
    assert engine.stats().max_tokens == 500


def test_weights_and_their_copies_are_not_planned_twice() -> None:
    """Of what an actor may hold, keys and values get a quarter of what the rest leaves."""
    job = spec(model={"device": "cpu"}, batching={"vision_cache_mib": 64})
    held = 64 * 2**20 + sum(weight.nbytes for weight in load_model(job).parameters())
    tokens = [
        load_engine(job, Placement("cpu", "float32", 1, num_bytes)).stats().max_tokens  # too little for copies
        for num_bytes in (held + 100_000_000, held + 200_000_000)
    ]
    config = load_model(job).config
    token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    copies = _copied_bytes(job)
    assert tokens == [(left - copies) // 4 // token_bytes for left in (100_000_000, 200_000_000)]


def _copied_bytes(job: JobSpec) -> int:
    if not torch._C._has_mkldnn:
        return 0
    model = load_model(job)
    return sum(layer.weight.nbytes for layer in model.modules() if isinstance(layer, torch.nn.Linear))


def test_waiting_threads_are_settled_before_torch_is_loaded() -> None:
    """GNU's OpenMP says what it goes by."""
    code = "from ray_job.models.threads import own_process; own_process(); import torch"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
        env={**env, "OMP_DISPLAY_ENV": "VERBOSE", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr
    assert "GOMP_SPINCOUNT = '1000'" in done.stderr
