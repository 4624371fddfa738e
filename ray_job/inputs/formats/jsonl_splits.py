"""The lines of JSONL files: sampled for their types, counted, and cut into splits at lines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ray_job.errors import InputError, RowError
from ray_job.inputs.files import InputFile
from ray_job.inputs.formats.json_columns import parse_object
from ray_job.inputs.formats.lines import Line, iter_lines
from ray_job.inputs.source import FileSplit, malformed
from ray_job.storage.places import STORAGE_ERRORS, Location, open_input, reason

SPLIT_BYTES = 32 * 2**20
SPLIT_ROWS = 4096
SAMPLE_LINES = 1000
SAMPLE_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class JsonlSplit(FileSplit):
    """Neighbouring lines of one file."""

    start: int  # bytes
    end: int
    first_line: int  # number, from 1, of the line that begins at `start`


def sample(file: InputFile, max_line_bytes: int) -> list[Mapping[str, Any]]:
    """The first lines that are objects; the others' rows will say what is wrong with them."""
    items: list[Mapping[str, Any]] = []
    with open_lines(file.location, max_line_bytes) as lines:
        for line in islice(lines, SAMPLE_LINES):
            with contextlib.suppress(RowError):
                items.append(parse_object(line.content or b""))
            if line.end > SAMPLE_BYTES:
                break
    return items


def scan(file: InputFile, max_line_bytes: int, checked_id: str | None) -> Iterator[JsonlSplit]:
    """Counts a file's lines and cuts it; where ids are numbers, checks that each line has one."""
    first: Line | None = None
    num_rows = end = 0
    with open_lines(file.location, max_line_bytes) as lines:
        for line in lines:
            if checked_id is not None:
                _check_id(file, line, checked_id)
            is_full = first is not None and (line.end - first.start > SPLIT_BYTES or num_rows >= SPLIT_ROWS)
            if first is not None and is_full and not _is_compressed(file.location):
                yield _split(file, first, end, num_rows)
                first, num_rows = None, 0
            first = first or line
            num_rows, end = num_rows + 1, line.end
    if first is not None:
        yield _split(file, first, end, num_rows)


def _split(file: InputFile, first: Line, end: int, num_rows: int) -> JsonlSplit:
    return JsonlSplit(file.name, num_rows, end - first.start, file.location, first.start, end, first.number)


def _check_id(file: InputFile, line: Line, column: str) -> None:
    try:
        value = parse_object(line.content or b"").get(column)
        if type(value) is not int or not -(2**63) <= value < 2**63:
            raise malformed(f"{column!r} must be a whole number, as in other lines")
    except RowError as error:
        raise InputError(
            f"{at_line(file.name, line, error).message}. Ids are numbers here, so the line cannot be called by its "
            "position: repair it or take it out, or give input.id_column another column"
        ) from None


@contextlib.contextmanager
def open_lines(location: Location, max_bytes: int, split: JsonlSplit | None = None) -> Iterator[Iterator[Line]]:
    """The lines of a file or of a split of it."""
    try:
        if _is_compressed(location):
            with location.filesystem.open_input_stream(location.path, compression="gzip") as stream:
                yield iter_lines(stream, max_bytes)
        elif split is None:
            with location.filesystem.open_input_stream(location.path, compression=None) as stream:
                yield iter_lines(stream, max_bytes)
        else:
            with open_input(location) as handle:
                stream = handle.get_stream(split.start, split.end - split.start)
                yield iter_lines(stream, max_bytes, start=split.start, first_number=split.first_line)
    except STORAGE_ERRORS as error:
        raise InputError(f"{location}: cannot be read: {reason(error)}") from None


def _is_compressed(location: Location) -> bool:
    return location.path.endswith(".gz")


def at_line(name: str, line: Line, error: RowError) -> RowError:
    return RowError(error.code, f"{name}, line {line.number}: {error.message}", error.stage)
