"""Counts ids that several rows share, from the finished parts. Rows are not merged: each keeps its own record.

Memory is bounded, at 24 bytes for each id: the ids of an output of more than 20 million rows are read in several
passes, each for a share of their hashes.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ray_job.arrow.column_types import filtered
from ray_job.arrow.values import python_values
from ray_job.output.account import Ints
from ray_job.output.compaction import read_part
from ray_job.output.ledger import Ledger
from ray_job.output.manifest import Duplicates
from ray_job.output.matching import KnownRows
from ray_job.rows import ROW_ID

_PASS_ROWS = 20_000_000
_NUM_EXAMPLES = 5


def find_duplicates(ledger: Ledger) -> Duplicates:
    """The ids that several rows of the output share; a row with several questions counts once."""
    num_passes = 1 + sum(part.num_rows for part in ledger.parts) // _PASS_ROWS
    num_ids, num_rows = 0, 0
    examples: list[Ints] = []
    for share in range(num_passes):
        known = KnownRows.of_ledger(ledger, share=(share, num_passes))
        is_repeat = np.zeros(len(known.hashes), dtype=np.bool_)
        is_repeat[1:] = known.hashes[1:] == known.hashes[:-1]
        is_first_repeat = is_repeat.copy()
        is_first_repeat[1:] &= ~is_repeat[:-1]
        num_ids += int(np.count_nonzero(is_first_repeat))
        num_rows += int(np.count_nonzero(is_repeat))
        examples.append(known.positions[is_first_repeat][:_NUM_EXAMPLES])
    wanted = np.concatenate(examples)[:_NUM_EXAMPLES]
    return Duplicates(num_ids, num_rows, tuple(_ids_at(ledger, wanted)))


def _ids_at(ledger: Ledger, positions: Ints) -> list[str]:
    """The ids of the rows with these numbers, sorted."""
    ids: set[str] = set()
    for part in ledger.parts if len(positions) else ():
        is_wanted = np.isin(part.account.positions, positions)
        if is_wanted.any():
            rows = filtered(read_part(part, [ROW_ID]), pa.array(is_wanted))
            ids.update(map(str, python_values(rows.column(ROW_ID))))
    return sorted(ids)
