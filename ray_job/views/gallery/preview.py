"""A few rows of a job answered now: the way to tune a prompt before the whole input is run."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_job.arrow.column_types import with_types
from ray_job.arrow.values import python_rows
from ray_job.cluster.warm_actor import warm_actor
from ray_job.errors import SpecError
from ray_job.inputs.picking import pick_rows
from ray_job.inputs.remaining import Remaining
from ray_job.rows import POSITION, output_schema
from ray_job.spec import JobSpec
from ray_job.stages.open_job import open_job
from ray_job.stages.prepare import row_values
from ray_job.views.gallery.cards import Card, CardMaker
from ray_job.views.gallery.render import cards_html, cards_text


@dataclass(frozen=True)
class Preview:
    """A few answered rows: `table` is what the job's parts would hold of them; `show` shows the cards."""

    table: pa.Table
    cards: tuple[Card, ...]  # one for each row of the table
    seconds: float  # from the call to the answers, loading included

    def to_pandas(self) -> Any:
        """The table as a DataFrame."""
        return self.table.to_pandas()

    def __repr__(self) -> str:
        return cards_text(self.cards, self.summary)

    def _repr_html_(self) -> str:
        return cards_html(self.cards, self.summary)

    @property
    def summary(self) -> str:
        """Counts and time in one line."""
        num_failed = sum(not card.is_answered for card in self.cards)
        return f"{len(self.cards) - num_failed} answered, {num_failed} failed in {self.seconds:.1f} s"


def preview(spec: JobSpec, n: int = 8, *, seed: int | None = None) -> Preview:
    """Answers n rows of a job and writes nothing.

    The answers are those the job would give. The model stays loaded for the next preview, whatever else of the spec is
    changed, until another model is asked for or a job is run in this process.

    Args:
        spec: the job.
        n: rows; one with several questions counts once.
        seed: draws the rows at random; by default they are the input's first.

    Raises:
        SpecError, InputError, ModelError: as `run_job` would before its first row.
        RayJobError: the model does not load, or its actor died.
    """
    started_s = time.monotonic()
    if n < 1:
        raise SpecError([f"n: got {n}; allowed: at least 1"], "preview")
    spec, source, preparer = open_job(spec)
    everything = range(source.num_rows)
    rows = pick_rows(
        source, everything[:n] if seed is None else random.Random(seed).sample(everything, min(n, len(everything)))
    )
    schema = output_schema(source.id_field.type, source.kept, spec.has_questions, spec.generation.structured_outputs)
    prepared = preparer(Remaining.all(rows.num_rows).select(rows, 0))
    table = warm_actor().generate(spec, prepared, schema)
    seconds = time.monotonic() - started_s
    output = with_types(table, schema)
    cards = _cards(output, table.column(POSITION).to_pylist(), rows, CardMaker(spec, source))
    return Preview(output, cards, seconds)


def _cards(output: pa.Table, positions: Sequence[int], rows: pa.Table, maker: CardMaker) -> tuple[Card, ...]:
    """Cards of the output rows, which come in the order of the input's, one for each question."""
    values, records = row_values(rows, maker.source, maker.password_column), python_rows(output)
    return tuple(maker.card(record, values[place]) for record, place in zip(records, positions, strict=True))
