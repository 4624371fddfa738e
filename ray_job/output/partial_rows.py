"""Rows whose questions lie in several parts: which part makes such a row whole, so that it is counted then and once."""

from __future__ import annotations

import pyarrow as pa

from ray_job.output.parts import Receipt
from ray_job.rows import POSITION, QUESTIONS


class PartialRows:
    """What is missing of rows in part committed. It holds those rows only.

    Args:
        again: `Remaining.again`, which says what runs before this one left of a row.
    """

    def __init__(self, again: pa.Table) -> None:
        positions, questions = (again.column(name).to_pylist() for name in (POSITION, QUESTIONS))
        self._num_missing = {row: len(left) for row, left in zip(positions, questions, strict=True) if left is not None}

    def num_completed(self, receipt: Receipt) -> int:
        """How many rows a part makes whole together with parts before it."""
        num_whole = 0
        for position, num_records, num_questions in receipt.partial_rows:
            num_missing = self._num_missing.pop(position, num_questions) - num_records
            if num_missing > 0:
                self._num_missing[position] = num_missing
            else:
                num_whole += 1
        return num_whole
