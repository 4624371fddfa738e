"""The Ray a job runs on: one that is there already, or a local one it starts and stops itself."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray_job.errors import SpecError
from ray_job.spec import JobSpec, WorkersSpec


@dataclass(frozen=True, slots=True)
class Workers:
    """The actor pool, settled against what the cluster has."""

    min_actors: int
    max_actors: int
    gpus_per_actor: float
    cpus_per_actor: float


@contextmanager
def ray_session() -> Iterator[None]:
    """Joins the Ray that this process already uses, or that RAY_ADDRESS names; else starts one for the job's time."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray Data's own actor pool makes the core log a scare line for every pool; real failures reach us as exceptions.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    if ray.is_initialized():
        _calm()
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if not os.environ.get("RAY_ADDRESS"):
        options |= {"include_dashboard": False, "address": "local"}
    with _silent_stderr():
        ray.init(**options)
    _calm()
    try:
        yield
    finally:
        ray.shutdown()


def settle_workers(spec: JobSpec) -> Workers:
    """The pool this cluster can hold.

    Raises:
        SpecError: it has not the GPUs or CPUs asked for; without this check Ray would wait for ever.
    """
    import ray

    workers, resources = spec.workers, ray.cluster_resources()  # type: ignore[no-untyped-call]
    num_cpus, num_gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    gpus = workers.gpus_per_actor
    if gpus == "auto":
        gpus = 1.0 if num_gpus and spec.model.device != "cpu" else 0.0
    settled = Workers(workers.min_actors, workers.max_actors or workers.min_actors, gpus, workers.cpus_per_actor)
    problems = _problems(workers, settled, num_cpus, num_gpus)
    if problems:
        raise SpecError(problems)
    return settled


def _problems(asked: WorkersSpec, settled: Workers, num_cpus: float, num_gpus: float) -> list[str]:
    problems = []
    if settled.min_actors * settled.gpus_per_actor > num_gpus and not _autoscales():
        problems.append(
            f"workers.gpus_per_actor: {settled.min_actors} × {settled.gpus_per_actor:g} GPUs are asked for, "
            f"the cluster has {num_gpus:g}; lower workers.min_actors or set workers.gpus_per_actor: 0"
        )
    if settled.max_actors * settled.cpus_per_actor > num_cpus - 1 and settled.cpus_per_actor and not _autoscales():
        problems.append(
            f"workers.cpus_per_actor: {settled.max_actors} × {settled.cpus_per_actor:g} CPUs leave none of the "
            f"cluster's {num_cpus:g} to read and prepare rows; lower workers.max_actors or workers.cpus_per_actor"
        )
    return problems


def _autoscales() -> bool:
    """Whether the cluster may grow: then what is there now says little."""
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return bool(os.environ.get("RAY_ADDRESS")) and len(nodes) > 1


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drops what Ray's processes write while they start; what goes wrong there is raised as well."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _calm() -> None:
    """Ray Data's own bars and start-up lines would drown the job's."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
