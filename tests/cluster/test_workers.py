"""Which pool of actors a cluster holds, may grow to hold, or never will."""

from __future__ import annotations

from typing import Any

import pytest

from ray_job import JobSpec
from ray_job.cluster.workers import fit_workers
from ray_job.errors import SpecError


def spec(**workers: Any) -> JobSpec:
    return JobSpec.from_dict({"input": {"path": "in"}, "output": {"path": "out"}, "workers": workers})


def test_gpus_are_used_where_they_are() -> None:
    fitted = fit_workers(spec(min_actors=2, max_actors=5), 8, 2, may_grow=False)
    assert (fitted.gpus_per_actor, fitted.dtype, fitted.min_actors, fitted.max_actors) == (1, "bfloat16", 2, 5)
    fitted = fit_workers(spec(), 8, 0, may_grow=False)
    assert (fitted.gpus_per_actor, fitted.dtype) == (0, "float32")


def test_a_share_of_a_gpu_is_passed_through() -> None:
    fitted = fit_workers(spec(min_actors=4, gpus_per_actor=0.25), 8, 1, may_grow=False)
    assert (fitted.gpus_per_actor, fitted.max_actors) == (0.25, 4)
    with pytest.raises(SpecError, match=r"5 × 0\.25 GPUs are asked for, the cluster has 1;"):
        fit_workers(spec(min_actors=5, gpus_per_actor=0.25), 8, 1, may_grow=False)


def test_a_cluster_that_may_grow_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    asked = spec(min_actors=4, gpus_per_actor=1)
    with pytest.raises(SpecError, match="the cluster has 1;"):
        fit_workers(asked, 8, 1, may_grow=False)
    assert fit_workers(asked, 8, 1, may_grow=True).min_actors == 4
    assert "the cluster has 1; lower" in caplog.text
    assert "waiting for it to grow, at most limits.no_progress_s, 1800 s" in caplog.text


def test_a_sleeping_cluster_cannot_tell_what_auto_means() -> None:
    with pytest.raises(SpecError, match="set 1, or 0 for CPUs"):
        fit_workers(spec(), 0, 0, may_grow=True)
    assert fit_workers(spec(gpus_per_actor=1), 0, 0, may_grow=True).gpus_per_actor == 1
