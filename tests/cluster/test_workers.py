"""Which pool of actors a cluster holds, may grow to hold, or never will, and what its machines give each actor."""

from __future__ import annotations

from typing import Any

import pytest

from ray_job import JobSpec
from ray_job.cluster.machines import Node, actors_on
from ray_job.cluster.workers import _first_on_machine, fit_workers
from ray_job.errors import SpecError


def spec(**workers: Any) -> JobSpec:
    return JobSpec.from_dict({"input": {"path": "in"}, "output": {"path": "out"}, "workers": workers})


def test_gpus_are_used_where_they_are() -> None:
    fitted = fit_workers(spec(min_actors=2, max_actors=5), 8, 2, may_grow=False)
    assert (fitted.gpus_per_actor, fitted.dtype, fitted.min_actors, fitted.max_actors) == (1, "bfloat16", 2, 5)
    fitted = fit_workers(spec(), 8, 0, may_grow=False)
    assert (fitted.gpus_per_actor, fitted.dtype) == (0, "float32")


@pytest.mark.parametrize(
    ("workers", "device", "settled"),
    [
        ({"gpus_per_actor": 0}, "auto", (0, "cpu", "float32")),
        ({}, "cpu", (0, "cpu", "float32")),
        ({}, "cuda", (1, "cuda", "bfloat16")),
        ({"gpus_per_actor": 0.5}, "auto", (0.5, "cuda", "bfloat16")),
    ],
)
def test_device_and_dtype_follow_from_the_gpus_an_actor_gets(
    workers: dict[str, Any], device: str, settled: tuple[float, str, str]
) -> None:
    asked = JobSpec.from_dict({**spec(**workers).model_dump(), "model": {"device": device}})
    fitted = fit_workers(asked, 8, 1, may_grow=False)
    assert (fitted.gpus_per_actor, fitted.device, fitted.dtype) == settled


def test_a_cluster_without_gpus_cannot_hold_a_model_on_cuda() -> None:
    asked = JobSpec.from_dict({**spec().model_dump(), "model": {"device": "cuda"}})
    with pytest.raises(SpecError, match="1 × 1 GPUs are asked for, the cluster has 0"):
        fit_workers(asked, 8, 0, may_grow=False)
    assert fit_workers(asked, 0, 0, may_grow=True).device == "cuda", "machines that come will tell"


def cluster(*sizes: tuple[float, float]) -> list[Node]:
    """Machines of so many CPUs and GPUs."""
    return [Node(f"n{index}", cpus, gpus) for index, (cpus, gpus) in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "max_actors", "cpus", "gpus", "counts"),
    [
        ([(16, 0)] * 16, 16, 0, 0, [1] * 16),
        ([(16, 0)] * 16, 1, 0, 0, [1] * 16),
        ([(16, 0)] * 16, 17, 0, 0, [2] * 16),
        ([(16, 0)], 4, 0, 0, [4]),
        ([(0, 0), (16, 0), (16, 0)], 4, 0, 0, [2, 2, 2]),  # a head that does no work
        ([(4, 0), (64, 0)], 6, 8, 0, [6, 6]),  # the small one has no room for any
        ([(8, 0), (64, 0)], 6, 8, 0, [1, 5]),
        ([(32, 4), (32, 4)], 8, 0, 1, [4, 4]),
        ([(32, 4), (32, 4)], 2, 0, 1, [1, 1]),
        ([(32, 1), (96, 8)], 9, 0, 1, [1, 8]),
        ([(32, 2)], 4, 0, 0.5, [4]),
        ([(32, 2)], 8, 0, 0.4, [4]),  # two on each GPU: what is left of both does not make one
        ([(32, 8)], 8, 8, 1, [4]),  # its CPUs are for four
        ([(16, 0), (32, 4)], 8, 0, 1, [8, 4]),  # one without GPUs will hold none
    ],
)
def test_actors_spread_evenly_as_far_as_there_is_room(
    sizes: list[tuple[float, float]], max_actors: int, cpus: float, gpus: float, counts: list[int]
) -> None:
    nodes = cluster(*sizes)
    assert [actors_on(node, nodes, max_actors, cpus, gpus) for node in nodes] == counts


@pytest.mark.parametrize(
    ("workers", "sizes", "threads"),
    [
        ({"max_actors": 16}, [(16, 0)] * 16, [16]),
        ({"max_actors": 16, "cpus_per_actor": 8}, [(16, 0)] * 16, [8]),
        ({"max_actors": 64}, [(16, 0)] * 16, [4]),
        ({"max_actors": 60, "cpus_per_actor": 3}, [(16, 0)] * 16, [3]),
        ({"max_actors": 64, "threads": 2}, [(16, 0)] * 16, [2]),
        ({"max_actors": 2}, [(0, 0), (4, 0), (32, 0)], [4, 32]),
        ({"gpus_per_actor": 1, "max_actors": 8}, [(96, 8), (4, 0)], [12]),
    ],
)
def test_an_actors_threads_are_those_of_its_own_machine(
    workers: dict[str, Any], sizes: list[tuple[float, float]], threads: list[int]
) -> None:
    asked, nodes = spec(**workers), cluster(*sizes)
    fitted = fit_workers(asked, sum(cpus for cpus, _ in sizes), sum(gpus for _, gpus in sizes), may_grow=False)
    assert fitted.threads(asked, nodes, {}) == threads


def test_threads_are_no_more_than_a_machines_processes_may_use() -> None:
    """Ray counts the CPUs of the machine, a control group gives its processes six."""
    asked, nodes = spec(max_actors=2), cluster((16, 0))
    assert fit_workers(asked, 16, 0, may_grow=False).threads(asked, nodes, {"n0": 6.0}) == [3]


def test_a_share_of_a_gpu_is_passed_through() -> None:
    fitted = fit_workers(spec(min_actors=4, gpus_per_actor=0.25), 8, 1, may_grow=False)
    assert (fitted.gpus_per_actor, fitted.max_actors) == (0.25, 4)
    with pytest.raises(SpecError, match=r"5 × 0\.25 GPUs are asked for, the cluster has 1;"):
        fit_workers(spec(min_actors=5, gpus_per_actor=0.25), 8, 1, may_grow=False)


@pytest.mark.parametrize(("gpus_per_actor", "rooms"), [(4.0, [1, 2, 0]), (3.0, [1, 2, 0]), (0.5, [8, 16, 4])])
def test_a_model_is_split_over_the_gpus_of_one_machine(gpus_per_actor: float, rooms: list[int]) -> None:
    assert [node.capacity(0.0, gpus_per_actor) for node in cluster((8, 4), (8, 8), (8, 2))] == rooms
    sections = {"workers": {"gpus_per_actor": 4}, "batching": {"engine": "vllm"}}
    asked = JobSpec.from_dict({"input": {"path": "in"}, "output": {"path": "out"}, **sections})
    assert fit_workers(asked, 8, 8, may_grow=False, most_gpus=4).resources["num_gpus"] == 4
    with pytest.raises(SpecError, match=r"4 are asked for, and no machine has more than 2"):
        fit_workers(asked, 8, 8, may_grow=False, most_gpus=2)
    with pytest.raises(SpecError, match=r"1 × 4 GPUs are asked for, the cluster has 2"):
        fit_workers(asked, 8, 2, may_grow=False, most_gpus=2)


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


class Kept:
    """A store in this process."""

    worker = "actor"

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def put(self, key: str, value: bytes, overwrite: bool = True) -> bool:
        was_there = key in self._values
        if overwrite or not was_there:
            self._values[key] = value
        return was_there

    def get(self, key: str) -> bytes | None:
        return self._values.get(key)

    def delete(self, key: str) -> None:
        self._values.pop(key, None)


def test_actors_of_a_machine_plan_from_what_the_first_of_them_found() -> None:
    store = Kept()
    assert [_first_on_machine(store, node, found) for node, found in (("a", 60), ("a", 20), ("b", 30), ("a", 50))] == [
        60,
        60,
        30,
        60,
    ]
