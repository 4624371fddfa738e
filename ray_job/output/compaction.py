"""Drops superseded records, so that a finished output holds each key once. It may be killed at any point.

Only records that do not count are dropped, each file is replaced as a whole, and records that count stay where they
are: a run that dies here leaves an output with the same content and fewer superseded records.
"""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from ray_job.arrow.column_types import filtered
from ray_job.errors import RayJobError
from ray_job.output.account import sums
from ray_job.output.ledger import Bools, Ledger, Part
from ray_job.output.parts import write_part
from ray_job.storage.damage import is_damage
from ray_job.storage.places import STORAGE_ERRORS, Location, reason
from ray_job.storage.whole_files import remove


def drop_superseded(root: Location, ledger: Ledger) -> int:
    """Rewrites parts with superseded records, or deletes those with no other; returns how many records it dropped."""
    if not ledger.num_superseded:
        return 0
    for index, part in enumerate(ledger.parts):
        counts = ledger.counts_of(index)
        if not counts.any():
            remove(root, [part.name])
        elif not counts.all():
            _rewrite(root, part, counts)
    return ledger.num_superseded


def _rewrite(root: Location, part: Part, counts: Bools) -> None:
    rows = filtered(read_part(part), pa.array(counts))
    account = part.account
    kept = replace(
        account,
        keys=account.keys[counts],
        num_questions=account.num_questions[counts],
        attempts=account.attempts[counts],
        **sums(rows),
    )
    write_part(root, part.name, rows, kept)


def read_part(part: Part, columns: list[str] | None = None) -> pa.Table:
    """The rows of a part, with page checksums verified, and without the footer's metadata.

    Raises:
        RayJobError: it cannot be read, or is damaged; with what to do.
    """
    try:
        with part.location.filesystem.open_input_file(part.location.path) as stream:
            table = pq.ParquetFile(stream, page_checksum_verification=True).read(columns)
    except (*STORAGE_ERRORS, ValueError) as error:
        if not is_damage(error):
            raise RayJobError(f"{part.location}: cannot be read: {reason(error)}. Try again") from None
        raise RayJobError(
            f"{part.location}: is damaged: {reason(error)}. Delete it; --mode resume then does its rows again"
        ) from None
    return table.replace_schema_metadata(None)
