"""Small blocks wait for a slow stage in a bounded number."""

from __future__ import annotations

import time

import pyarrow as pa
import pytest
import ray.data
from ray.data._internal.execution.backpressure_policy import ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY
from ray.data._internal.execution.backpressure_policy.backpressure_policy import BackpressurePolicy
from ray.data._internal.execution.interfaces.physical_operator import PhysicalOperator

from ray_job.cluster.backpressure import bound_waiting_blocks
from ray_job.cluster.session import ray_session

NUM_BLOCKS, BLOCK_ROWS, NUM_SLOW = 600, 4, 10


class Watch(BackpressurePolicy):
    """Notes how many blocks wait, and never stops a stage."""

    most_waiting = 0

    def can_add_input(self, op: PhysicalOperator) -> bool:
        Watch.most_waiting = max(Watch.most_waiting, self._topology[op].total_enqueued_input_blocks())
        return True


def slowly(table: pa.Table) -> pa.Table:
    if table.column("id")[0].as_py() < NUM_SLOW * BLOCK_ROWS:
        time.sleep(0.3)
    return table


@pytest.mark.cluster
@pytest.mark.slow
def test_small_blocks_do_not_pile_up_in_front_of_a_slow_stage(local_ray: None) -> None:
    with ray_session():
        rows = ray.data.range(NUM_BLOCKS * BLOCK_ROWS, override_num_blocks=1)
        bound_waiting_blocks(rows.context, BLOCK_ROWS)
        policies = rows.context.get_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY)
        rows.context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*policies, Watch])
        rows = rows.map_batches(lambda table: table, batch_size=None, batch_format="pyarrow")
        rows = rows.repartition(target_num_rows_per_block=BLOCK_ROWS)
        done = rows.map_batches(slowly, batch_size=None, batch_format="pyarrow", num_cpus=0.8)
        found = [row["id"] for row in done.iter_rows()]
    assert sorted(found) == list(range(NUM_BLOCKS * BLOCK_ROWS))
    # 32 blocks and one for each row of a block may wait; what Ray lets through to keep things moving comes on top.
    assert NUM_SLOW < Watch.most_waiting <= 2 * (32 + BLOCK_ROWS), "without the bound, most of them wait"
