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
_BLOCK_ROWS = "ray_job.block_rows"


class WaitingBlocks(BackpressurePolicy):
    """Stops a stage while enough of its blocks wait for the next one: two for each task of that, and 32 at least.

    A stage that gathers rows for its own batches may need a block for each of them, so it gets as many on top.
    """

    def can_add_input(self, op: PhysicalOperator) -> bool:
        """Whether the stage may start another task."""
        return not self._is_ahead(op)

    def max_task_output_bytes_to_read(self, op: PhysicalOperator) -> int | None:
        """How many bytes of its tasks' finished output may be taken; None: all."""
        return 0 if self._is_ahead(op) else None

    def _is_ahead(self, op: PhysicalOperator) -> bool:
        if isinstance(op, ActorPoolMapOperator):  # its output is text, gathered and written at once
            return False
        block_rows = self._data_context.get_config(_BLOCK_ROWS)
        return any(
            self._topology[after].total_enqueued_input_blocks()
            >= block_rows + max(_LEAST_WAITING, 2 * after.num_active_tasks())
            for after in op.output_dependencies
        )


def bound_waiting_blocks(context: DataContext, block_rows: int) -> None:
    """Bounds the queues of the datasets with this context, whose stages gather at most `block_rows` rows."""
    context.set_config(_BLOCK_ROWS, block_rows)
    policies = [*ENABLED_BACKPRESSURE_POLICIES, WaitingBlocks]
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)
