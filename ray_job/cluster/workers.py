"""The actor pool, settled against what the cluster has or may grow to have."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ray_job.errors import SpecError
from ray_job.redaction.logs import logger_of
from ray_job.spec import JobSpec

_LOG = logger_of(__name__)


@dataclass(frozen=True, slots=True)
class Workers:
    """The actor pool, settled against what the cluster has."""

    min_actors: int
    max_actors: int
    gpus_per_actor: float
    cpus_per_actor: float
    dtype: str  # of the model


def settle_workers(spec: JobSpec) -> Workers:
    """The pool this cluster can hold, or may grow to hold.

    Raises:
        SpecError: it has not the GPUs or CPUs asked for; without this check Ray would wait for ever.
    """
    import ray

    resources, num_nodes = ray.cluster_resources(), len(ray.nodes())  # type: ignore[no-untyped-call]
    num_cpus, num_gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    # Ray does not tell whether a cluster grows. One of several machines may, and one that can do no work yet must.
    may_grow = bool(os.environ.get("RAY_ADDRESS")) and (num_nodes > 1 or not num_cpus)
    return fit_workers(spec, num_cpus, num_gpus, may_grow)


def fit_workers(spec: JobSpec, num_cpus: float, num_gpus: float, may_grow: bool) -> Workers:
    """See `settle_workers`.

    Args:
        num_cpus: of the cluster, now.
        num_gpus: of the cluster, now.
        may_grow: what is missing may come later; it is waited for, at most `limits.no_progress_s`.

    Raises:
        SpecError: what is missing will not come.
    """
    workers = spec.workers
    gpus = workers.gpus_per_actor
    if gpus == "auto" and may_grow and not num_cpus and not num_gpus and spec.model.device != "cpu":
        raise SpecError(
            ["workers.gpus_per_actor: the cluster has no worker yet, so that `auto` cannot tell; set 1, or 0 for CPUs"]
        )
    if gpus == "auto":
        gpus = 1.0 if num_gpus and spec.model.device != "cpu" else 0.0
    dtype: str = spec.model.dtype
    if dtype == "auto":
        dtype = "bfloat16" if gpus and spec.model.device != "cpu" else "float32"
    max_actors = workers.max_actors or workers.min_actors
    settled = Workers(workers.min_actors, max_actors, gpus, workers.cpus_per_actor, dtype)
    problems = _problems(settled, num_cpus, num_gpus)
    if problems and not may_grow:
        raise SpecError(problems)
    for problem in problems:
        _LOG.warning(
            "%s; waiting for it to grow, at most limits.no_progress_s, %g s", problem, spec.limits.no_progress_s
        )
    return settled


def _problems(settled: Workers, num_cpus: float, num_gpus: float) -> list[str]:
    problems = []
    if settled.min_actors * settled.gpus_per_actor > num_gpus:
        problems.append(
            f"workers.gpus_per_actor: {settled.min_actors} × {settled.gpus_per_actor:g} GPUs are asked for, "
            f"the cluster has {num_gpus:g}; lower workers.min_actors or set workers.gpus_per_actor: 0"
        )
    if settled.max_actors * settled.cpus_per_actor > num_cpus - 1 and settled.cpus_per_actor:
        problems.append(
            f"workers.cpus_per_actor: {settled.max_actors} × {settled.cpus_per_actor:g} CPUs leave none of the "
            f"cluster's {num_cpus:g} to read and prepare rows; lower workers.max_actors or workers.cpus_per_actor"
        )
    return problems
