"""What a job wants of Ray Data, set on its own dataset: the process's `DataContext` stays as the caller has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ray_job.cluster.process_settings import without_warnings
from ray_job.spec import JobSpec, LimitsSpec

if TYPE_CHECKING:
    from ray.data import DataContext

# What storage says when trying again may help; a task that reads or writes is then tried `limits.max_attempts` times.
_PASSING = (
    "AWS Error NETWORK_CONNECTION",
    "AWS Error SLOW_DOWN",
    "AWS Error SERVICE_UNAVAILABLE",
    "AWS Error INTERNAL_FAILURE",
    "AWS Error REQUEST_TIMEOUT",
    "Connection reset",
    "timed out",
)


def configure(context: DataContext, spec: JobSpec) -> None:
    """Bounded retries, a stall guard, bounded queues, errors as they were raised, and no bars.

    Args:
        context: of a dataset (`Dataset.context`); those made from it share it.
    """
    from ray_job.cluster.backpressure import bound_waiting_blocks

    limits = spec.limits
    context.execution_no_progress_timeout_s = limits.no_progress_s
    context.retried_map_errors = list(_PASSING)
    context.max_map_retries = limits.max_attempts - 1
    context.raise_original_map_exception = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    bound_waiting_blocks(context, spec.batching.block_rows)


def in_blocks_of(rows: Any, num_rows: int, num_cpus: float) -> Any:
    """The rows in blocks of so many at most, cut in the very tasks that `rows` come from.

    Args:
        rows: what a `map_batches` gave.
        num_rows: of a block.
        num_cpus: of a task of that `map_batches`.
    """
    rows = rows.repartition(target_num_rows_per_block=num_rows)
    # Ray fuses stages with equal options only, and its repartition takes none. Apart, it would ask for a whole CPU and
    # keep it while its blocks wait: with one CPU for all stages nothing would ever be prepared.
    cutting = rows._logical_plan.dag
    cutting.ray_remote_args["num_cpus"] = num_cpus
    return rows


@contextmanager
def bounded_restarts(limits: LimitsSpec) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """Options of tasks and of an actor pool whose restarts end; Ray Data's own do not. Ray 2.60 has old names only."""
    from ray.util.annotations import RayDeprecationWarning

    with without_warnings(RayDeprecationWarning):
        num = limits.max_restarts
        yield {"max_retries": num}, {"max_restarts": num, "max_task_retries": num}
