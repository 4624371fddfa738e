"""The final count: whether the parts of an output hold each row of its input once and whole, and no other row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from ray_job.output.ledger import Ledger
from ray_job.output.manifest import InputRecord


@dataclass(frozen=True, slots=True)
class RowCount:
    """Rows of the latest input, and what the parts hold of them."""

    input_rows: int
    known: int  # of these, rows that earlier inputs had
    found: int  # of the others, rows with a record
    foreign: int  # rows numbered beyond the input's last
    incomplete: int  # rows with more or fewer records than questions
    superseded: int  # records beside one that counts

    @classmethod
    def of_ledger(cls, ledger: Ledger, record: InputRecord) -> Self:
        """Counts by the footers."""
        rows = ledger.rows()
        numbers = rows.positions - record.first_position
        return cls(
            input_rows=record.rows,
            known=record.known_rows,
            found=int(np.count_nonzero((numbers >= 0) & (numbers < record.rows))),
            foreign=int(np.count_nonzero(numbers >= record.rows)),
            incomplete=int(np.count_nonzero(rows.num_found != rows.num_questions)),
            superseded=ledger.num_superseded,
        )

    def problems(self) -> list[str]:
        """A line for each number that is wrong."""
        lines = []
        if self.superseded:
            lines.append(f"{self.superseded} records are doubled: their rows have another that counts")
        if self.incomplete:
            lines.append(f"{self.incomplete} rows have more or fewer records than questions")
        num_missing = self.input_rows - self.known - self.found
        if num_missing > 0:
            lines.append(f"{num_missing} of the input's {self.input_rows} rows are missing")
        if num_missing < 0:
            lines.append(f"{-num_missing} of the input's {self.input_rows} rows are there under two numbers")
        if self.foreign:
            lines.append(f"{self.foreign} rows are of no input")
        return lines
