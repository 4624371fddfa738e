"""The pool of actors, settled against what the cluster has or may grow to have."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray_job.cluster.machines import Node, actors_on, living_nodes
from ray_job.engine.host import available_bytes, usable_cpus
from ray_job.errors import SpecError
from ray_job.models.placement import Device, Dtype, Machine, Placement, settle_device, settle_dtype, settle_threads
from ray_job.models.threads import own_process
from ray_job.redaction.logs import logger_of
from ray_job.spec import JobSpec
from ray_job.stages.poison import DurableStore

_LOG = logger_of(__name__)
_A_LITTLE = 0.001  # of a CPU: an actor that asks for none might be put on a head that does no work


@dataclass(frozen=True, slots=True)
class Workers:
    """The settled pool. The driver decides what is here; what depends on an actor's machine, `place` finds there."""

    min_actors: int
    max_actors: int
    gpus_per_actor: float
    cpus_per_actor: float
    device: Device
    dtype: Dtype  # of the model's weights

    @property
    def resources(self) -> dict[str, float | None]:
        """What an actor reserves, as Ray's options."""
        cpus = self.cpus_per_actor or (0.0 if self.gpus_per_actor else _A_LITTLE)
        return {"num_gpus": self.gpus_per_actor or None, "num_cpus": cpus}

    def place(self, spec: JobSpec, store: DurableStore | None = None) -> Placement:
        """What the actor of this process computes with.

        Args:
            spec: the job's.
            store: shared with the job's other actors; without it this one counts as the first on its machine.
        """
        import ray

        own_process()
        node_id = ray.get_runtime_context().get_node_id()
        nodes = living_nodes()
        node = next((each for each in nodes if each.node_id == node_id), Node(node_id, 0.0, 0.0))
        available = available_bytes()
        first = available if store is None else _first_on_machine(store, node_id, available)
        machine = self._machine(node, nodes, usable_cpus(), available, first)
        threads = settle_threads(spec.workers, machine)
        return Placement(self.device, self.dtype, threads, machine.bytes_per_actor, self.gpus_per_actor)

    def record(self, spec: JobSpec) -> dict[str, Any]:
        """What was decided, as the manifest shows it."""
        import ray

        nodes = living_nodes()
        usable = {ray.get_runtime_context().get_node_id(): usable_cpus()}
        return {
            "device": self.device,
            "dtype": self.dtype,
            **({} if spec.model.quantization is None else {"quantization": spec.model.quantization}),
            "gpus_per_actor": self.gpus_per_actor,
            "threads_per_actor": self.threads(spec, nodes, usable),
        }

    def threads(self, spec: JobSpec, nodes: Sequence[Node], usable: dict[str, float]) -> list[int]:
        """Threads of an actor, ascending: one number for each size of machine that may hold one.

        Args:
            spec: the job's.
            nodes: the cluster's.
            usable: CPUs that processes of a node may use, by its id, where that is known.
        """
        able = [node for node in nodes if node.capacity(self.cpus_per_actor, self.gpus_per_actor)]
        machines = [self._machine(node, nodes, usable.get(node.node_id, node.num_cpus)) for node in able]
        return sorted({settle_threads(spec.workers, machine) for machine in machines})

    def _machine(self, node: Node, nodes: Sequence[Node], usable: float, available: int = 0, first: int = 0) -> Machine:
        """What the pool's actors on a node share: CPUs that Ray counts there and that processes may use, and memory."""
        num_actors = actors_on(node, nodes, self.max_actors, self.cpus_per_actor, self.gpus_per_actor)
        return Machine(min(usable, node.num_cpus or usable), available, first, num_actors)


def settle_workers(spec: JobSpec) -> Workers:
    """The pool that this cluster can hold, or may grow to hold.

    Raises:
        SpecError: it lacks the GPUs or CPUs asked for; without this check Ray would wait for ever.
    """
    import ray

    resources, num_nodes = ray.cluster_resources(), len(ray.nodes())  # type: ignore[no-untyped-call]
    num_cpus, num_gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    # Ray does not tell whether a cluster grows. One of several machines may, and one that can do no work yet must.
    may_grow = bool(os.environ.get("RAY_ADDRESS")) and (num_nodes > 1 or not num_cpus)
    most_gpus = max((node.num_gpus for node in living_nodes()), default=0.0)
    return fit_workers(spec, num_cpus, num_gpus, may_grow, most_gpus)


def fit_workers(
    spec: JobSpec, num_cpus: float, num_gpus: float, may_grow: bool, most_gpus: float | None = None
) -> Workers:
    """The pool for a cluster of this size.

    Args:
        spec: the job.
        num_cpus: of the cluster, now.
        num_gpus: of the cluster, now.
        may_grow: what is missing may come later; it is waited for, at most `limits.no_progress_s`.
        most_gpus: of one machine; None: of all of them.

    Raises:
        SpecError: something is missing that will not come.
    """
    workers = spec.workers
    gpus = workers.gpus_per_actor
    if gpus == "auto" and spec.model.device == "auto":
        if may_grow and not num_cpus and not num_gpus:
            raise SpecError(
                ["workers.gpus_per_actor: the cluster has no workers yet, so `auto` cannot tell; set 1, or 0 for CPUs"]
            )
        gpus = 1.0 if num_gpus else 0.0
    elif gpus == "auto":
        gpus = 1.0 if spec.model.device == "cuda" else 0.0
    device = settle_device(gpus)
    settled = Workers(
        min_actors=workers.min_actors,
        max_actors=workers.max_actors or workers.min_actors,
        gpus_per_actor=gpus,
        cpus_per_actor=workers.cpus_per_actor,
        device=device,
        dtype=settle_dtype(spec.model, device),
    )
    problems = _problems(settled, num_cpus, num_gpus, num_gpus if most_gpus is None else most_gpus)
    if problems and not may_grow:
        raise SpecError(problems)
    for problem in problems:
        _LOG.warning(
            "%s; waiting for it to grow, at most limits.no_progress_s, %g s", problem, spec.limits.no_progress_s
        )
    return settled


def _problems(settled: Workers, num_cpus: float, num_gpus: float, most_gpus: float) -> list[str]:
    problems = []
    if settled.min_actors * settled.gpus_per_actor > num_gpus:
        problems.append(
            f"workers.gpus_per_actor: {settled.min_actors} × {settled.gpus_per_actor:g} GPUs are asked for, "
            f"the cluster has {num_gpus:g}; lower workers.min_actors or set workers.gpus_per_actor: 0"
        )
    elif settled.gpus_per_actor > max(1, most_gpus):
        problems.append(
            f"workers.gpus_per_actor: a model is split over the GPUs of one machine; {settled.gpus_per_actor:g} are "
            f"asked for, and no machine has more than {most_gpus:g}; lower it"
        )
    if settled.max_actors * settled.cpus_per_actor > num_cpus - 1 and settled.cpus_per_actor:
        problems.append(
            f"workers.cpus_per_actor: {settled.max_actors} × {settled.cpus_per_actor:g} CPUs leave none of the "
            f"cluster's {num_cpus:g} to read and prepare rows; lower workers.max_actors or workers.cpus_per_actor"
        )
    return problems


def _first_on_machine(store: DurableStore, node_id: str, available: int) -> int:
    """Memory that was available when the first of the job's actors came to a machine.

    An actor that comes later, or again after a death, finds what its neighbours took gone; its part is of the whole.
    """
    key = f"memory/{node_id}"
    store.put(key, str(available).encode(), overwrite=False)
    return int(store.get(key) or available)
