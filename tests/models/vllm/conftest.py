"""vLLM's engine over the demo's model, once for all tests here that need it."""

from __future__ import annotations

from typing import Any

import pytest

from ray_job.engine.interface import Engine
from ray_job.models.engines import load_engine
from ray_job.models.placement import Placement
from ray_job.spec import JobSpec

POOL_BYTES = 64 * 2**20
PLACEMENT = Placement("cpu", "float32", threads=1, memory_bytes=2 * 2**30)


def vllm_spec(**sections: Any) -> JobSpec:
    """A job that vLLM answers, from a small pool."""
    batching = {"engine": "vllm", "engine_options": {"kv_cache_memory_bytes": POOL_BYTES}}
    sections["batching"] = {**batching, **sections.get("batching", {})}
    limits = {"max_images": 2, **sections.pop("limits", {})}
    return JobSpec.from_dict({"input": {"path": "in"}, "output": {"path": "out"}, "limits": limits, **sections})


@pytest.fixture(scope="session")
def demo_engine() -> Engine:
    """Used by one test at a time, and left without work."""
    pytest.importorskip("vllm")
    return load_engine(vllm_spec(), PLACEMENT)
