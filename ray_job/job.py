"""The main path: rows in, the same rows out with answers.

    read → prepare (CPU) → generate (the actor pool) → write parts → count

Ray Data streams the stages beside each other; the driver sees only receipts of committed parts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TextIO

from ray_job.cluster import Workers, ray_session, settle_workers
from ray_job.inputs import open_source
from ray_job.inputs.source import Source
from ray_job.models import load_config, load_processor, settle_model
from ray_job.output.parts import PartWriter, Receipt
from ray_job.output.run import Run, State
from ray_job.prepare import Preparer
from ray_job.progress import Progress
from ray_job.report import Report
from ray_job.rows import output_schema
from ray_job.signals import interruptible
from ray_job.spec import JobSpec


def run_job(spec: JobSpec, *, stream: TextIO | None = None) -> Report:
    """Runs a job to its end and returns what it did.

    Args:
        spec: the job.
        stream: where progress is shown; standard error by default.

    Raises:
        SpecError, InputError, ModelError: before any row is read.
        TooManyRowErrors, AccountingError, Interrupted: while running; the parts committed so far stay.
    """
    spec, source, preparer = open_job(spec)
    run = Run.open(spec, source.num_rows)
    with Progress(run.totals, source.num_rows, stream or sys.stderr) as progress:
        try:
            progress.phase("starting Ray")
            with ray_session(), interruptible():
                progress.phase("waiting for the first part")
                for receipt in stream_receipts(spec, source, preparer, settle_workers(spec), run):
                    run.totals.add(receipt)
                    run.totals.check(spec.limits, source.num_rows)
        except BaseException as error:
            run.write_manifest(State.of_error(error), str(error))
            raise
    report = Report(str(run.root), source.num_rows, run.totals, run.elapsed_s, spec.fingerprint())
    run.finish(report.to_dict())
    return report


def stream_receipts(spec: JobSpec, source: Source, preparer: Preparer, workers: Workers, run: Run) -> Iterator[Receipt]:
    """The Ray Data pipeline; yields a receipt for each part as it is committed."""
    import ray.data

    from ray_job.actor import GenerateActor
    from ray_job.inputs.datasource import RowDatasource

    schema = output_schema(source.id_field.type, source.kept, spec.has_questions)
    rows = ray.data.read_datasource(RowDatasource(source))
    rows = rows.repartition(target_num_rows_per_block=spec.batching.block_rows)
    prepared = rows.map_batches(
        preparer,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(spec.workers.prepare_tasks),
    )
    results = prepared.map_batches(
        GenerateActor,
        fn_constructor_args=(spec, schema),
        # Ray wants a number where there are GPUs; blocks have this size already.
        batch_size=spec.batching.block_rows if workers.gpus_per_actor else None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            min_size=workers.min_actors,
            max_size=workers.max_actors,
            max_concurrent_calls_per_actor=spec.batching.blocks_per_actor,
        ),
        num_gpus=workers.gpus_per_actor or None,
        num_cpus=workers.cpus_per_actor,
    )
    receipts = results.map_batches(
        PartWriter(run.root, schema), batch_size=spec.output.part_rows, batch_format="pyarrow"
    )
    for table in receipts.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from Receipt.of_table(table)


def open_job(spec: JobSpec) -> tuple[JobSpec, Source, Preparer]:
    """Checks a spec against its input's headers and its model's small files, and settles what they decide.

    Raises:
        SpecError, InputError: the input is not there, or has not the columns the spec names.
        ModelError: the model's folder has no usable configuration or tokenizer.
    """
    source = open_source(spec)
    spec = spec.model_copy(update={"prompt": source.prompt, "model": settle_model(spec.model)})
    limit = spec.limits.max_prompt_tokens or load_config(spec.model).max_position_embeddings - 1
    return spec, source, Preparer(spec, source.without_splits(), load_processor(spec.model), limit)
