"""The machines of a cluster, and how many actors of a pool each of them gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_ROUNDING = 1e-6  # Ray's sums of fractions are not exact


@dataclass(frozen=True, slots=True)
class Node:
    """What Ray counts on one machine."""

    node_id: str
    num_cpus: float
    num_gpus: float

    def capacity(self, cpus_per_actor: float, gpus_per_actor: float) -> float:
        """How many actors it has room for; infinite for actors that reserve nothing, 0 where it does no work."""
        rooms: list[float] = []
        if cpus_per_actor:
            rooms.append(math.floor(self.num_cpus / cpus_per_actor + _ROUNDING))
        if gpus_per_actor > 1:
            rooms.append(int(self.num_gpus // gpus_per_actor))
        elif gpus_per_actor:  # what is left of two GPUs does not make one
            rooms.append(int(self.num_gpus) * math.floor(1 / gpus_per_actor + _ROUNDING))
        return min(rooms, default=math.inf if self.num_cpus else 0)


def living_nodes() -> list[Node]:
    """The cluster's machines, now."""
    import ray

    found = []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            resources = node["Resources"]
            found.append(Node(node["NodeID"], resources.get("CPU", 0.0), resources.get("GPU", 0.0)))
    return found


def actors_on(node: Node, nodes: Sequence[Node], max_actors: int, cpus_per_actor: float, gpus_per_actor: float) -> int:
    """The most actors of a full pool that share a machine: Ray spreads them evenly, as far as there is room.

    Args:
        node: of `nodes`, or one that came later.
        nodes: the cluster's.
        max_actors: of the pool.
        cpus_per_actor: that each reserves; 0 for none.
        gpus_per_actor: the same.
    """
    rooms = [each.capacity(cpus_per_actor, gpus_per_actor) for each in nodes]
    is_enough = (sum(min(room, num) for room in rooms) >= max_actors for num in range(1, max_actors))
    fair = next((num for num, enough in enumerate(is_enough, start=1) if enough), max_actors)
    return int(min(fair, node.capacity(cpus_per_actor, gpus_per_actor) or fair))
