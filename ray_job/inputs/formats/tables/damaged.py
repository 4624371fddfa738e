"""Rows that a file stores together (a Parquet row group, an Arrow record batch) and that are lost together.

How many they are is known before they are read, so each one that is damaged is a row with an error, under its own id
where the id column can still be read. What was read is held back for a while: nothing of a damaged group is delivered
that is not larger than HELD_BYTES, since where a page breaks, the values before the break may be wrong already. Of a
larger one the rows from the first that was still held back are lost. Where that is does not depend on `max_rows`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ray_job.errors import InputError, RowError
from ray_job.inputs.formats.tables.table_source import Rows, TableSplit
from ray_job.inputs.source import malformed
from ray_job.storage.damage import is_damage
from ray_job.storage.places import STORAGE_ERRORS, reason

HELD_BYTES = 32 * 2**20
PIECE_ROWS = 256
_FAILURES = (*STORAGE_ERRORS, ValueError)


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that lie together in a file."""

    split: TableSplit
    name: str  # what a message calls it: `row group 3`
    first_row: int  # position in the file
    num_rows: int
    read: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]
    """The rows with the columns of these names, in pieces of about PIECE_ROWS, the same whenever it is called."""
    is_damage: Callable[[Exception], bool] = is_damage


def iter_rows(group: Group, names: Sequence[str], id_name: str | None, max_rows: int) -> Iterator[Rows]:
    """The rows of a group in order, those that are damaged with their error; always as many as it has.

    Args:
        group: as planned.
        names: the columns to read.
        id_name: the column that holds the ids, if any; it counts where it is one of them.
        max_rows: of a batch.

    Raises:
        InputError: the storage fails.
    """
    num_rows = 0
    try:
        for piece in _held_back(_counted(group, names)):
            num_rows += piece.num_rows
            yield from _cut(piece, max_rows)
    except _FAILURES as error:
        problem = _problem(group, num_rows, error)
    else:
        return
    ids = tuple(name for name in names if name == id_name)
    for columns in dict.fromkeys((ids, ())):
        place = 0
        try:
            for piece in _held_back(_counted(group, columns)):
                rest = piece.slice(max(0, num_rows - place))
                place += piece.num_rows
                num_rows += rest.num_rows
                yield from _cut(rest, max_rows, problem)
        except _FAILURES as error:
            _check_damage(group, error)
    nameless = pa.RecordBatch.from_struct_array(pa.repeat(pa.scalar({}, pa.struct([])), group.num_rows - num_rows))
    yield from _cut(nameless, max_rows, problem)


def _counted(group: Group, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    num_rows = 0
    for piece in group.read(names):
        num_rows += piece.num_rows
        if num_rows > group.num_rows:
            break
        yield piece
    if num_rows != group.num_rows:
        raise ValueError(f"it does not have the {group.num_rows} rows that it should")


def _held_back(pieces: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The pieces, once HELD_BYTES of them are read or all are."""
    held: deque[pa.RecordBatch] = deque()
    num_bytes = 0
    for piece in pieces:
        held.append(piece)
        num_bytes += piece.nbytes
        del piece  # or it would stay while others are used
        if num_bytes >= HELD_BYTES:
            num_bytes = 0
            while held:
                yield held.popleft()
    while held:
        yield held.popleft()


def _cut(piece: pa.RecordBatch, max_rows: int, problem: RowError | None = None) -> Iterator[Rows]:
    for start in range(0, piece.num_rows, max_rows):
        yield Rows(piece.slice(start, max_rows), problem=problem)


def _problem(group: Group, num_rows: int, error: Exception) -> RowError:
    """What the rows say that stand behind the first `num_rows`."""
    _check_damage(group, error)
    first, last = group.first_row + num_rows, group.first_row + group.num_rows - 1
    return malformed(
        f"{group.split.name}, {group.name}, rows {first} to {last} (counted from 0): damaged: {reason(error)}. "
        "None of them is read; write the file again or fetch it anew"
    )


def _check_damage(group: Group, error: Exception) -> None:
    if not group.is_damage(error):
        raise InputError(
            f"{group.split.location}: {group.name} cannot be read: {reason(error)}. Run the job again; if it is not "
            "the storage that failed, write the file again or take it out of input.path"
        ) from None
