"""How far reading and preparing may run ahead of the engine, in blocks.

Ray Data bounds a stage's lead by bytes: it may go on until half of its share of the object store is full. But Ray keeps
an object under 100 kB in the driver's own memory, and rows of text, or of pictures that are only named, make blocks of
a few kilobytes: a table of ten million of them would be read into the driver before the engine had answered a
thousandth. So only a bounded number of blocks waits in front of a stage. What that saves: `bench/RESULTS.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
)
from ray.data._internal.execution.backpressure_policy.backpressure_policy import BackpressurePolicy
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

if TYPE_CHECKING:
    from ray.data._internal.execution.interfaces.physical_operator import PhysicalOperator

_LEAST_WAITING = 32
_RELEASE_INTERVAL_S = 0.1
_OVERHEAD_BYTES = 512  # of a block as Ray keeps it, beside its rows' own
_BLOCK_ROWS = "ray_job.block_rows"


class WaitingBlocks(BackpressurePolicy):
    """Stops a stage while enough of its blocks wait for the next one: two for each task of that, and 32 at least.

    A stage that gathers rows for its own batches may need a block for each of them, so it gets as many on top.
    """

    def can_add_input(self, op: PhysicalOperator) -> bool:
        """Whether the stage may start another task."""
        room = self._room(op)
        return room is None or room > 0

    def max_task_output_bytes_to_read(self, op: PhysicalOperator) -> int | None:
        """How many bytes of its tasks' finished output may be taken; None: all."""
        room = self._room(op)
        if room is None:
            return None
        # What is finished may be a whole reading task's output: taken at once, it would all wait here.
        return max(0, room) * int(_OVERHEAD_BYTES + (op.metrics.average_bytes_per_output or 0))

    def _room(self, op: PhysicalOperator) -> int | None:
        """How many more of its blocks may wait; None where there is no bound."""
        if isinstance(op, ActorPoolMapOperator):  # its output is text, gathered and written at once
            return None
        block_rows = self._data_context.get_config(_BLOCK_ROWS)
        rooms = [
            block_rows
            + max(_LEAST_WAITING, 2 * after.num_active_tasks())
            - self._topology[after].total_enqueued_input_blocks()
            for after in op.output_dependencies
        ]
        return min(rooms, default=None)


def bound_waiting_blocks(context: DataContext, block_rows: int) -> None:
    """Bounds the queues of the datasets with this context, whose stages gather at most `block_rows` rows."""
    context.set_config(_BLOCK_ROWS, block_rows)
    policies = [*ENABLED_BACKPRESSURE_POLICIES, WaitingBlocks]
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)
    # Until Ray Data knows the cluster's size, in its first seconds, it lets one block after another through.
    context.output_backpressure_guard_release_interval_s = _RELEASE_INTERVAL_S
