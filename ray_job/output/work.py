"""What a run on an output has to do, given its input and what earlier runs committed."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from ray_job.errors import SpecError
from ray_job.inputs.remaining import Remaining
from ray_job.inputs.source import Source
from ray_job.output.matching import KnownRows, match_input
from ray_job.output.modes import ExistingOutput
from ray_job.output.resume import what_is_left
from ray_job.spec import OutputSpec
from ray_job.storage.places import Location


class Work:
    """The rows of an input, those done and those left.

    Args:
        root: the output folder, for messages.
        spec: of the output; its mode decides whether new rows are taken.
        source: the input.
        existing: what the run found in the folder.
    """

    def __init__(self, root: Location, spec: OutputSpec, source: Source, existing: ExistingOutput) -> None:
        self._root = root
        self._spec = spec
        self._source = source
        self._existing = existing

    @property
    def needs_ids(self) -> bool:
        """Whether the input has changed since the previous run, so that Ray must read its ids to find known rows."""
        return self._existing.input.first_position > 0 and not self._has_nothing_to_do

    @cached_property
    def remaining(self) -> Remaining:
        """The rows left to do.

        Raises:
            SpecError: the output is finished, the input has new rows, and the mode is not append; or the output is not
                finished, and this is not its input.
        """
        existing = self._existing
        if self._has_nothing_to_do:
            return Remaining.none(existing.input.rows)
        first = existing.input.first_position
        left = what_is_left(existing.ledger, self._positions, first, self._spec.retry_failed)
        if existing.is_changed:
            self._check_change(left.num_rows - left.again.num_rows)
        return left

    @cached_property
    def expected_rows(self) -> int:
        """Rows the output has when this run is done: those of the input, and those that only earlier inputs had."""
        record = self._existing.input
        numbers = self._existing.ledger.rows().positions
        num_earlier = int(np.count_nonzero(numbers < record.first_position))
        return num_earlier + record.rows - self.num_known

    @property
    def num_known(self) -> int:
        """Rows of the input that earlier inputs had."""
        return int(np.count_nonzero(self._positions < self._existing.input.first_position))

    @property
    def _has_nothing_to_do(self) -> bool:
        """Whether the output is finished and whole, and its input unchanged."""
        existing = self._existing
        is_whole = existing.is_finished and not existing.is_changed and existing.has_all_parts
        return is_whole and not self._spec.retry_failed

    @cached_property
    def _positions(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The number of each of the input's rows."""
        record = self._existing.input
        positions = record.first_position + np.arange(record.rows, dtype=np.int64)
        if self.needs_ids:
            known = KnownRows.of_ledger(self._existing.ledger, before=record.first_position)
            rows, numbers = match_input(self._source, known)
            positions[rows] = numbers
        return positions

    def _check_change(self, num_new: int) -> None:
        """A finished output takes new rows by append only; an unfinished one must be finished with its own input."""
        existing = self._existing
        assert existing.previous is not None, "the first input is no change"
        if existing.is_finished and num_new and self._spec.mode == "resume":
            raise SpecError(
                [f"output.path: {self._root} is finished, and {num_new} rows of the input are new; use --mode append"]
            )
        before, numbers = existing.previous.inputs[-1], existing.ledger.rows().positions
        num_lacking = len(np.setdiff1d(numbers[numbers >= before.first_position], self._positions))
        if not existing.is_finished and len(numbers) and (num_lacking or existing.input.rows < before.rows):
            raise SpecError(
                [
                    f"output.path: {self._root} is not finished, and this is another input: the run there has "
                    f"{before.rows} rows, this input {existing.input.rows}, and {num_lacking} of the rows done "
                    "are not among them. Finish it with its own input first, then use --mode append"
                ]
            )
