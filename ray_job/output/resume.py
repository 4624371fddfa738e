"""Which rows and questions of an input are left to do, given what the parts hold."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ray_job.inputs.remaining import AGAIN_SCHEMA, Remaining
from ray_job.output.account import Ints
from ray_job.output.ledger import Ledger


def what_is_left(ledger: Ledger, positions: Ints, first_position: int, retry_failed: bool) -> Remaining:
    """The rows of an input that have no record or too few, and on request those that failed.

    Args:
        ledger: of the output.
        positions: the number of each row of the input.
        first_position: of rows that no earlier input had, the number of the first.
        retry_failed: whether failed rows are left to do.
    """
    rows = ledger.rows()
    if not len(rows.positions):
        return Remaining.all(len(positions), first_position)
    places = np.minimum(np.searchsorted(rows.positions, positions), len(rows.positions) - 1)
    is_begun = rows.positions[places] == positions
    is_done = is_begun & rows.is_whole[places]
    if retry_failed:
        is_done &= rows.is_answered[places]
    (again,) = np.nonzero(is_begun & ~is_done)
    known = places[again]
    attempts = rows.attempts[known] if retry_failed else np.zeros(len(again))
    questions = _questions_left(ledger, positions[again], rows.num_questions[known], retry_failed)
    columns = [again, positions[again], attempts.astype(np.int32), questions]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, AGAIN_SCHEMA, strict=True)]
    return Remaining(~is_done, first_position, pa.table(arrays, schema=AGAIN_SCHEMA))


def _questions_left(ledger: Ledger, positions: Ints, num_questions: Ints, retry_failed: bool) -> list[list[int] | None]:
    """For each of some rows begun before, its questions that are left.

    None stands for all of them: a row that has one question, and a row that failed as a whole.
    """
    left: list[list[int] | None] = [None] * len(positions)
    (several,) = np.nonzero(num_questions > 1)
    found = ledger.questions_found(positions[several], answered_only=retry_failed)
    for place, total, done in zip(several.tolist(), num_questions[several].tolist(), found, strict=True):
        if done:
            left[place] = sorted(set(range(total)).difference(done))
    return left
