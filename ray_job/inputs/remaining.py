"""Which rows of an input are left to do: one flag for each row, and more only for rows that are partly done.

Rows are told apart by number, not by id, so that the same id twice is two rows. A number (`rows.POSITION`) is a row's
for the life of the output: the first input's rows have 0, 1, …; those of a later one, after `append`, go on behind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_job.rows import ATTEMPTS, POSITION, QUESTIONS

_ROW = "row"
AGAIN_SCHEMA = pa.schema(
    [
        (_ROW, pa.int64()),  # its place in this input
        (POSITION, pa.int64()),
        (ATTEMPTS, pa.int32()),  # so far
        (QUESTIONS, pa.list_(pa.int32())),  # left to do; null: all
    ]
)
_ADDED_FIELDS = tuple(AGAIN_SCHEMA)[1:]


@dataclass(frozen=True)
class Remaining:
    """The rows left of an input, or of a stretch of it. A byte a row where it is held; tasks get their stretch only."""

    is_left: npt.NDArray[np.bool_]  # by row, from `first_row` on
    first_position: int  # number of the input's row 0
    again: pa.Table  # of AGAIN_SCHEMA, sorted by row: rows left that were begun before
    first_row: int = 0

    @classmethod
    def all(cls, num_rows: int, first_position: int = 0) -> Remaining:
        """A whole input, none of it done."""
        return cls(np.ones(num_rows, dtype=np.bool_), first_position, AGAIN_SCHEMA.empty_table())

    @classmethod
    def none(cls, num_rows: int) -> Remaining:
        """A whole input that is done."""
        return cls(np.zeros(num_rows, dtype=np.bool_), 0, AGAIN_SCHEMA.empty_table())

    @property
    def num_rows(self) -> int:
        """How many are left."""
        return int(np.count_nonzero(self.is_left))

    def stretch(self, start: int, stop: int) -> Remaining:
        """What is left of the rows from `start` to before `stop`."""
        again = self.again.slice(*_bounds(self.again, start, stop))
        return replace(self, is_left=self.is_left[self._places(start, stop)], again=again, first_row=start)

    def select(self, table: pa.Table, start: int) -> pa.Table:
        """Of a table of the rows from `start` on, those left, with POSITION, ATTEMPTS and QUESTIONS before them."""
        stop = start + table.num_rows
        is_left = self.is_left[self._places(start, stop)]
        (places,) = np.nonzero(is_left)
        positions, attempts = self.first_position + start + places, np.zeros(len(places), np.int32)
        questions: list[list[int] | None] = [None] * len(places)
        for row in self.again.slice(*_bounds(self.again, start, stop)).to_pylist():
            place = int(np.searchsorted(places, row[_ROW] - start))
            positions[place], attempts[place], questions[place] = row[POSITION], row[ATTEMPTS], row[QUESTIONS]
        values = (positions, attempts, questions)
        added = [pa.array(column, field.type) for column, field in zip(values, _ADDED_FIELDS, strict=True)]
        kept = table if len(places) == table.num_rows else table.filter(pa.array(is_left))
        return pa.table([*added, *kept.columns], schema=with_account(kept.schema))

    def _places(self, start: int, stop: int) -> slice:
        return slice(start - self.first_row, stop - self.first_row)


def with_account(schema: pa.Schema) -> pa.Schema:
    """A source's schema with the columns `select` puts before it."""
    return pa.schema([*_ADDED_FIELDS, *schema])


def _bounds(again: pa.Table, start: int, stop: int) -> tuple[int, int]:
    """Offset and length of the rows from `start` to before `stop`."""
    first, last = np.searchsorted(again.column(_ROW).to_numpy(), (start, stop))
    return int(first), int(last - first)
