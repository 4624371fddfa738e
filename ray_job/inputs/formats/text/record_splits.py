"""The records of text files: read one after the other, counted, and cut into splits between them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from ray_job.errors import InputError
from ray_job.inputs.formats.text.csv_rows import MAX_ROW_BYTES, join_lines
from ray_job.inputs.formats.text.json_items import CUT, iter_items
from ray_job.inputs.formats.text.lines import iter_all_lines, iter_lines
from ray_job.inputs.formats.text.records import Record
from ray_job.inputs.formats.text.text_files import TextFile, TextStream, open_text
from ray_job.inputs.source import FileSplit

SPLIT_BYTES = 32 * 2**20
SPLIT_ROWS = 4096


@dataclass(frozen=True, slots=True)
class RecordSplit(FileSplit):
    """Neighbouring records of one file."""

    file: TextFile
    start: int  # bytes
    end: int
    first_number: int  # of the record that begins at `start`
    is_cut: bool  # its last row says that the file was cut short


def scan_all(
    files: Iterable[TextFile], max_bytes: int, look_at: Callable[[TextFile, Record], None], max_rows: int | None
) -> list[RecordSplit]:
    """`scan` of files one after the other, until so many rows are found."""
    splits: list[RecordSplit] = []
    for file in files:
        left = None if max_rows is None else max_rows - sum(split.num_rows for split in splits)
        if left is not None and left <= 0:
            break
        splits += scan(file, max_bytes, partial(look_at, file), left)
    return splits


def scan(
    file: TextFile, max_bytes: int, look_at: Callable[[Record], None], max_rows: int | None = None
) -> list[RecordSplit]:
    """Counts a file's records and cuts it between them; a file that can only be read from its beginning stays whole.

    Args:
        file: where its header, if any, is known.
        max_bytes: of a record.
        look_at: is given every record.
        max_rows: those behind them are not read.
    """
    splits: list[RecordSplit] = []
    first: Record | None = None
    num_rows = end = 0
    with open_records(file, max_bytes) as records:
        for record in islice(records, max_rows):
            look_at(record)
            is_full = first is not None and (record.end - first.start > SPLIT_BYTES or num_rows >= SPLIT_ROWS)
            if first is not None and is_full and not file.is_whole:
                splits.append(_split(file, first, end, num_rows))
                first, num_rows = None, 0
            first = first or record
            num_rows, end = num_rows + 1, record.end
            is_cut = record.problem == CUT
    if first is not None:
        splits.append(replace(_split(file, first, end, num_rows), is_cut=is_cut))
    return splits


@contextlib.contextmanager
def open_records(file: TextFile, max_bytes: int, split: RecordSplit | None = None) -> Iterator[Iterator[Record]]:
    """The records of a file, its header left out, or of a split of it.

    Raises:
        InputError: it cannot be read, or has no longer the rows of the split.
    """
    if split is None or file.is_whole:
        with open_text(file) as stream:
            records = _up_to_damage(_records(file, stream, max_bytes, 0, 1), file, stream)
            header = file.first_row
            yield (record for record in records if record.start >= header)
    else:
        with open_text(file, split.start, split.end) as stream:
            yield _of_split(_records(file, stream, max_bytes, split.start, split.first_number), split)


def _of_split(records: Iterator[Record], split: RecordSplit) -> Iterator[Record]:
    number = split.first_number
    for record in records:
        number = record.number + 1
        yield record
    if split.is_cut and split.start > 0:
        yield Record(number, split.end, split.end, None, CUT)


def _up_to_damage(records: Iterator[Record], file: TextFile, stream: TextStream) -> Iterator[Record]:
    """The records; where the file breaks, the one in work says so, or one more does."""
    last: Record | None = None
    for record in records:
        if last is not None:
            yield last
        last = record
    if stream.damage is None:
        if last is not None:
            yield last
        return
    is_whole = last is not None and (last.problem is None if file.framing == "items" else stream.last_byte == b"\n")
    if last is None:
        yield Record(1, 0, 0, None, stream.damage)
    elif is_whole:
        yield last
        yield Record(last.number + 1, last.end, last.end, None, stream.damage)
    else:
        yield replace(last, content=None, problem=stream.damage)


def _records(file: TextFile, stream: TextStream, max_bytes: int, start: int, first_number: int) -> Iterator[Record]:
    if file.framing == "items":
        return iter_items(stream, max_bytes, start=start, first_number=first_number)
    if file.framing == "lines":
        return iter_lines(stream, max_bytes, start=start, first_number=first_number)
    lines = iter_all_lines(stream, max_bytes, start=start, first_number=first_number)
    return join_lines(lines, file.delimiter, min(max_bytes, MAX_ROW_BYTES))


def changed(split: RecordSplit) -> InputError:
    """A file that has other rows than when it was counted."""
    return InputError(f"{split.location}: has changed since the job began; run it again")


def _split(file: TextFile, first: Record, end: int, num_rows: int) -> RecordSplit:
    return RecordSplit(
        name=file.name,
        num_rows=num_rows,
        num_bytes=end - first.start,
        location=file.location,
        file=file,
        start=first.start,
        end=end,
        first_number=first.number,
        is_cut=False,
    )
