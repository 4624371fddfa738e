"""CPUs for a job's stages: what the cluster has beside the actors and the caller's own task, and what others hold."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ray_job.cluster.workers import Workers
from ray_job.errors import SpecError

_READ, _PREPARE, _WRITE = 1.0, 0.8, 0.1
_LEAST = 0.1  # of a CPU, for all stages together
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StageCpus:
    """CPUs of a task of each stage.

    Ray gives the first stages their CPUs first: with whole ones for preparing, two CPUs would write nothing until all
    is read. A reading task keeps its CPU while its rows wait, so where one task of each stage does not fit beside the
    actors, none would ever be prepared: there the tasks take smaller shares, and only one at a time reads or prepares.
    """

    read: float = _READ
    prepare: float = _PREPARE
    write: float = _WRITE
    max_tasks: int | None = None  # of reading, and of preparing, at once; None: as many as fit

    @classmethod
    def fit(cls, num_cpus: float) -> StageCpus:
        """Shares of so many CPUs that one task of each stage finds room."""
        share = num_cpus / 2  # a hair below: Ray's sums of fractions are not exact
        return cls() if share >= 1 else cls(share * _READ, share * _PREPARE, share * _WRITE, max_tasks=1)


def settle_stages(workers: Workers, max_wait_s: float) -> StageCpus:
    """The stages' CPUs, here and now; says what the job will wait for.

    Args:
        workers: the actors.
        max_wait_s: for the warning.

    Raises:
        SpecError: this runs in a Ray task or actor that holds what the job needs.
    """
    import ray

    resources, free = ray.cluster_resources(), ray.available_resources()  # type: ignore[no-untyped-call]
    num_cpus, num_gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    held = _held_by_caller()
    cpus_needed, gpus_needed = workers.min_actors * workers.cpus_per_actor, workers.min_actors * workers.gpus_per_actor
    left = num_cpus - held.get("CPU", 0.0) - cpus_needed
    gpus_left = num_gpus - held.get("GPU", 0.0) - gpus_needed
    if held and num_cpus and (left < _LEAST or gpus_left < 0):
        kept = ", ".join(f"{held.get(name, 0):g} of the cluster's {resources.get(name, 0):g} {name}s" for name in held)
        raise SpecError(
            [
                f"the Ray task or actor that runs this job holds {kept}, which the job needs while the task waits for "
                "it. Run the job from a driver, or give the task num_cpus=0 and num_gpus=0"
            ],
            "run_job",
        )
    stages = StageCpus.fit(left) if left > 0 else StageCpus()
    for name, needed in (("CPU", max(stages.read, cpus_needed)), ("GPU", gpus_needed)):
        total, available = resources.get(name, 0.0), free.get(name, 0.0)
        if total >= needed > available:
            held_by_others = f"{total - available:g} of the cluster's {total:g} {name}s are held by other work"
            _LOG.warning("%s; waiting for %g, at most limits.no_progress_s, %g s", held_by_others, needed, max_wait_s)
    return stages


def _held_by_caller() -> dict[str, float]:
    """CPUs and GPUs of the task or actor this runs in; nothing in a driver."""
    import ray

    context = ray.get_runtime_context()
    if context.worker.mode != ray.WORKER_MODE:
        return {}
    assigned = context.get_assigned_resources()  # type: ignore[no-untyped-call]
    return {name: assigned[name] for name in ("CPU", "GPU") if assigned.get(name)}
