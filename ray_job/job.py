"""The main path: rows in, the same rows out with answers.

    read → prepare (CPU) → generate (the actor pool) → write parts → count

Ray Data streams the stages beside each other; the driver sees only receipts of committed parts.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing
from typing import TextIO

import pyarrow as pa

from ray_job.cluster.capacity import StageCpus, settle_stages
from ray_job.cluster.dataset_options import bounded_restarts, configure, in_blocks_of
from ray_job.cluster.job_store import JobStore, StopFlag
from ray_job.cluster.liveness import Liveness
from ray_job.cluster.session import ray_session
from ray_job.cluster.signals import interruptible
from ray_job.cluster.warm_actor import warm_actor
from ray_job.cluster.workers import Workers, settle_workers
from ray_job.inputs.source import Source
from ray_job.models.room import warn_of_shortage
from ray_job.output.parts import Receipt
from ray_job.output.run import Run
from ray_job.output.summary import Report
from ray_job.rows import output_schema
from ray_job.spec import JobSpec
from ray_job.stages.open_job import open_job
from ray_job.stages.prepare import Preparer
from ray_job.stages.write import PartWriter
from ray_job.views.progress import Progress


def run_job(spec: JobSpec, *, stream: TextIO | None = None) -> Report:
    """Runs a job to its end and returns what it did.

    Args:
        spec: the job.
        stream: where progress is shown; standard error by default.

    Raises:
        SpecError, InputError, ModelError: before any row is read.
        TooManyRowErrors, AccountingError, Interrupted, ClusterLost: while running; the parts committed so far stay.
    """
    spec, source, preparer = open_job(spec)
    warm_actor().release()
    with (
        Run.open(spec, source) as run,
        Progress(run.totals, stream or sys.stderr) as progress,
        interruptible(spec.limits.grace_s) as stop,
        Liveness(run.record_end) as liveness,
    ):
        if run.work.needs_ids or run.work.remaining.num_rows:
            warn_of_shortage(spec)
            progress.phase("starting Ray")
            with ray_session(), liveness.watching(), JobStore() as store:
                flag = StopFlag(store)
                stop.arm(flag.set)
                workers = settle_workers(spec)
                cpus = settle_stages(workers)
                progress.phase("finding what is left" if run.work.needs_ids else "waiting for the first part")
                run.begin(workers.dtype, workers.record(spec))
                progress.count(run.work.expected_rows)
                with closing(stream_receipts(spec, source, preparer, workers, cpus, run, store, flag)) as receipts:
                    for receipt in receipts:
                        run.add(receipt)
                stop.disarm()
        stop.check(run.num_left)
        return run.finish(stop.ignore)


def stream_receipts(
    spec: JobSpec,
    source: Source,
    preparer: Preparer,
    workers: Workers,
    cpus: StageCpus,
    run: Run,
    store: JobStore,
    flag: StopFlag,
) -> Generator[Receipt]:
    """The Ray Data pipeline over the rows left to do; yields a receipt for each part as it is committed."""
    import ray.data

    from ray_job.inputs.datasource import RowDatasource
    from ray_job.stages.generate import GenerateActor

    schema = output_schema(source.id_field.type, source.kept, spec.has_questions, spec.generation.structured_outputs)
    reader = RowDatasource(source, remaining=run.work.remaining, should_stop=flag.is_set)
    rows = ray.data.read_datasource(reader, override_num_blocks=reader.num_tasks, num_cpus=cpus.read)
    configure(rows.context, spec)
    # Behind a map Ray cuts blocks where it reads them; straight behind reading that is a stage of its own.
    rows = rows.map_batches(_unchanged, batch_size=None, batch_format="pyarrow", num_cpus=cpus.read)
    rows = in_blocks_of(rows, spec.batching.block_rows, cpus.read)
    with bounded_restarts(spec.limits) as (task_restarts, actor_restarts):
        prepared = rows.map_batches(
            preparer.with_store(store),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(spec.workers.prepare_tasks),
            num_cpus=cpus.prepare,
            **task_restarts,
        )
        results = prepared.map_batches(
            GenerateActor,
            fn_constructor_args=(spec, schema, flag.is_set, store, workers.place),
            # Ray wants a number where there are GPUs; blocks have this size already.
            batch_size=spec.batching.block_rows if workers.gpus_per_actor else None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                min_size=workers.min_actors,
                max_size=workers.max_actors,
                max_concurrent_calls_per_actor=spec.batching.blocks_per_actor,
            ),
            **workers.resources,
            **actor_restarts,
        )
    receipts = results.map_batches(
        PartWriter(run.root, schema, run.number),
        batch_size=spec.rows_of_a_part(run.work.expected_rows),
        batch_format="pyarrow",
        num_cpus=cpus.write,
    )
    # Not `iter_batches`: it leaves a thread behind.
    for bundle in receipts.iter_internal_ref_bundles():
        for block in ray.get(bundle.block_refs):
            yield from Receipt.of_table(block)


def _unchanged(table: pa.Table) -> pa.Table:
    return table
