"""CPUs for a job's stages: what the cluster has beside the actors and the caller's own task, and what others hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray_job.cluster.workers import Workers
from ray_job.errors import SpecError
from ray_job.redaction.logs import logger_of

_AMPLE = 2.0  # CPUs, beside the actors
_LEAST = 0.1  # of a CPU, for all stages together
_LOG = logger_of(__name__)


@dataclass(frozen=True, slots=True)
class StageCpus:
    """CPUs of a task of each stage.

    Ray gives the first stages their CPUs first: with whole ones for preparing, two CPUs would write nothing until all
    is read. And a reading task keeps its CPU while its rows wait: where one task of each stage does not fit beside the
    actors, none of the rows would ever be prepared. Sums stay below what there is: Ray's own are not exact.
    """

    read: float = 1.0
    prepare: float = 0.8
    write: float = 0.1

    @classmethod
    def fit(cls, num_cpus: float) -> StageCpus:
        """Shares of so many CPUs that one task of each stage finds room, and a second one that reads does not."""
        return cls() if num_cpus >= _AMPLE else cls(min(1.0, 0.55 * num_cpus), 0.35 * num_cpus, 0.05 * num_cpus)


def settle_stages(workers: Workers) -> StageCpus:
    """The stages' CPUs, here and now; a warning says what the job has to wait for.

    Raises:
        SpecError: this runs in a Ray task or actor that holds what the job needs.
    """
    import ray

    resources, held = ray.cluster_resources(), _held_by_caller()  # type: ignore[no-untyped-call]
    needed = {"CPU": workers.min_actors * workers.cpus_per_actor, "GPU": workers.min_actors * workers.gpus_per_actor}
    left = {name: resources.get(name, 0.0) - held.get(name, 0.0) - needed[name] for name in needed}
    if held and (left["CPU"] < _LEAST or left["GPU"] < 0):
        kept = " and ".join(
            f"{num:g} of the cluster's {resources.get(name, 0):g} {name}s" for name, num in held.items()
        )
        raise SpecError(
            [
                f"the Ray task or actor that runs this job holds {kept}, which the job needs while the task waits for "
                "it. Run the job from a driver, or give the task num_cpus=0 and num_gpus=0"
            ],
            "run_job",
        )
    stages = StageCpus.fit(left["CPU"]) if left["CPU"] > 0 else StageCpus()
    say_what_is_held({"CPU": needed["CPU"] + stages.read, "GPU": needed["GPU"]})
    return stages


def say_what_is_held(needed: Mapping[str, float]) -> None:
    """Warns of resources that the cluster has, and that other work holds now.

    Args:
        needed: resource → how many.
    """
    import ray

    resources, free = ray.cluster_resources(), ray.available_resources()  # type: ignore[no-untyped-call]
    for name, num in needed.items():
        total, available = resources.get(name, 0.0), free.get(name, 0.0)
        if total >= num > available:
            held = total - available
            _LOG.warning("waiting for %g of the cluster's %g %ss: other work holds %g", num, total, name, held)


def _held_by_caller() -> dict[str, float]:
    """CPUs and GPUs of the task or actor this runs in; nothing in a driver."""
    import ray

    context = ray.get_runtime_context()
    if context.worker.mode != ray.WORKER_MODE:
        return {}
    assigned = context.get_assigned_resources()  # type: ignore[no-untyped-call]
    return {name: assigned[name] for name in ("CPU", "GPU") if assigned.get(name)}
