"""How large a KV pool is: a share of what is free, and never too small for a row."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from ray_job.engine.continuous import ContinuousEngine
from ray_job.engine.memory import free_bytes, pool_tokens
from ray_job.engine.packed_model import AttentionLayer, PackedModel
from ray_job.models.phi3_vision.packed import PackedPhi3Vision
from tests.engine.tiny import VOCABULARY, tiny_model

GIB = 2**30
PHI3_TOKEN_BYTES = 2 * 32 * 32 * 96 * 4  # keys and values of 32 layers and heads of 96 channels, float32


def phi3(device: str = "cpu", dtype: torch.dtype = torch.float32, max_len: int = 131072) -> PackedModel:
    """The sizes of Phi-3-Vision's decoder."""
    sizes = {"layers": [AttentionLayer(num_heads=32, head_dim=96)] * 32, "max_len": max_len}
    return cast(PackedModel, SimpleNamespace(device=torch.device(device), dtype=dtype, **sizes))


def test_a_pool_takes_a_quarter_of_a_cpus_memory_and_four_fifths_of_a_gpus() -> None:
    assert pool_tokens(phi3(), 64 * GIB, 100) == 16 * GIB // PHI3_TOKEN_BYTES
    assert pool_tokens(phi3("cuda", torch.bfloat16), 60 * GIB, 100) == 48 * GIB // (PHI3_TOKEN_BYTES // 2)


@pytest.mark.parametrize("left", [GIB, 0, -8 * GIB])
def test_a_pool_holds_a_row_however_little_is_left(left: int) -> None:
    assert pool_tokens(phi3(), left, 3805) == 3805
    assert pool_tokens(phi3(max_len=2048), left, 3805) == 2048, "no row is longer"


@pytest.mark.parametrize(
    ("gpu_share", "free", "reserved", "left"),
    [
        (1.0, 70, 9, 70),
        (1.0, 30, 9, 30),  # another program has the rest
        (0.5, 70, 9, 31),  # the neighbour has not loaded its model yet
        (0.5, 31, 9, 31),  # it has
        (0.25, 20, 12, 8),
    ],
)
def test_a_part_of_a_gpu_is_a_part_of_its_memory(
    gpu_share: float, free: int, reserved: int, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved * GIB)
    assert free_bytes(torch.device("cuda"), gpu_share) == left * GIB


def test_an_engine_without_a_plan_takes_its_share_of_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    model = PackedPhi3Vision(tiny_model(), free_bytes=0)
    token_bytes = 2 * 2 * 4 * 8 * 4
    free: dict[str, Any] = {"bytes": 4000 * token_bytes}
    monkeypatch.setattr("ray_job.engine.memory.available_bytes", lambda: free["bytes"])
    assert ContinuousEngine(model, VOCABULARY).stats().max_tokens == 1000
    free["bytes"] = 0
    assert ContinuousEngine(model, VOCABULARY, step_tokens=100).stats().max_tokens == 100
