"""Rows whose questions are in several parts: each is counted once, with the part that completes it."""

from __future__ import annotations

import pyarrow as pa

from ray_job.output.parts import Receipt
from ray_job.rows import POSITION, QUESTIONS


class PartialRows:
    """How many questions are missing of each row that is partly committed. It holds only such rows.

    Args:
        again: `Remaining.again`, which says which questions earlier runs left to do.
    """

    def __init__(self, again: pa.Table) -> None:
        positions, questions = (again.column(name).to_pylist() for name in (POSITION, QUESTIONS))
        self._num_missing = {row: len(left) for row, left in zip(positions, questions, strict=True) if left is not None}

    def num_completed(self, receipt: Receipt) -> int:
        """How many rows a part completes, together with earlier parts."""
        num_whole = 0
        for position, num_records, num_questions in receipt.partial_rows:
            num_missing = self._num_missing.pop(position, num_questions) - num_records
            if num_missing > 0:
                self._num_missing[position] = num_missing
            else:
                num_whole += 1
        return num_whole
