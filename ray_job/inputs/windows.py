"""Tables of rows gathered into windows of bounded size: what a reading task holds at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

WINDOW_BYTES = 32 * 2**20
WINDOW_ROWS = 4096


def iter_windows(
    tables: Iterable[pa.Table], max_bytes: int = WINDOW_BYTES, max_rows: int = WINDOW_ROWS
) -> Iterator[pa.Table]:
    """Neighbouring tables joined, up to the limits; a table that exceeds them is a window of its own.

    Args:
        tables: of one schema.
        max_bytes: of Arrow's memory.
        max_rows: of a window.
    """
    held: list[pa.Table] = []
    num_bytes = num_rows = 0
    for table in tables:
        if held and (num_bytes + table.nbytes > max_bytes or num_rows + table.num_rows > max_rows):
            yield _taken(held)
            num_bytes = num_rows = 0
        held.append(table)
        num_bytes += table.nbytes
        num_rows += table.num_rows
        del table  # or it would stay while the window is used
    if held:
        yield _taken(held)


def _taken(held: list[pa.Table]) -> pa.Table:
    """The tables as one, which alone still holds them."""
    table = pa.concat_tables(held)
    held.clear()
    return table
