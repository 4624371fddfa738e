"""A whole job in this process, without Ray: read, prepare, generate, write, finish."""

from __future__ import annotations

from ray_job.inputs.source import iter_tables
from ray_job.output.parts import Receipt
from ray_job.output.run import Run
from ray_job.output.summary import Report
from ray_job.rows import output_schema
from ray_job.spec import JobSpec
from ray_job.stages.generate import GenerateActor
from ray_job.stages.open_job import open_job
from ray_job.stages.write import PartWriter


def run_here(spec: JobSpec) -> Report:
    """What `run_job` does, for an input that the output was begun with."""
    spec, source, preparer = open_job(spec)
    schema = output_schema(source.id_field.type, source.kept, spec.has_questions, spec.generation.structured_outputs)
    with Run.open(spec, source) as run:
        run.begin()
        actor, write = GenerateActor(spec, schema), PartWriter(run.root, schema, run.number)
        start = 0
        for table in iter_tables(source, 2):
            rows = run.work.remaining.select(table, start)
            start += table.num_rows
            for receipt in Receipt.of_table(write(actor.generate(preparer(rows)))) if rows.num_rows else ():
                run.add(receipt)
        actor.close()
        return run.finish()
