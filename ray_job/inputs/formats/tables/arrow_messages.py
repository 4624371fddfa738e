"""Where the record batches of an Arrow IPC stream or file lie and how many rows each has, from their headers alone.

Arrow's own readers read a batch to tell its rows; here the headers are walked and the bodies are not read. A file is a
stream behind eight bytes, with a footer. The headers are flatbuffers, laid out as in Arrow's `Message.fbs`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ray_job.errors import InputError
from ray_job.storage.places import STORAGE_ERRORS, Location, reason

FILE_MAGIC = b"ARROW1"
FEATHER_V1_MAGIC = b"FEA1"
_CONTINUATION = 0xFFFFFFFF
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_HEADER_TYPE, _HEADER, _BODY_LENGTH = 1, 2, 3  # places of a Message's fields
_NUM_ROWS, _NODES = 0, 1  # and of a RecordBatch's
_MAX_HEADER_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class BatchPlace:
    """One record batch."""

    offset: int  # of its message in the file
    num_rows: int
    num_bytes: int  # of its body, as stored


@dataclass(frozen=True, slots=True)
class ArrowLayout:
    """What a file holds, in order."""

    is_file: bool  # with a footer; otherwise a stream
    has_dictionaries: bool
    batches: tuple[BatchPlace, ...]


def arrow_layout(location: Location, handle: Any) -> ArrowLayout:
    """Walks the headers.

    Args:
        location: for messages.
        handle: a seekable file.

    Raises:
        InputError: it is neither, a version that is not read any more, or cut short.
    """
    try:
        handle.seek(0)
        start = bytes(handle.read(len(FILE_MAGIC)))
        if start.startswith(FEATHER_V1_MAGIC):
            raise InputError(
                f"{location}: Feather version 1, which has no batches to read piece by piece. Write it again as "
                "version 2: pyarrow.feather.write_feather(pyarrow.feather.read_table(path), path)"
            )
        is_file = start == FILE_MAGIC
        if is_file and not _has_footer(handle):
            raise _broken(location, "its footer is missing")
        found = list(_messages(location, handle, 8 if is_file else 0))
    except (*STORAGE_ERRORS, ValueError, struct.error) as error:
        raise _broken(location, reason(error)) from None
    batches = tuple(place for kind, place in found if kind == _BATCH)
    return ArrowLayout(is_file, any(kind == _DICTIONARY for kind, _ in found), batches)


def _messages(location: Location, handle: Any, offset: int) -> Iterator[tuple[int, BatchPlace]]:
    """Kind and place of each message; a stream may end with a mark or without."""
    size, start = handle.size(), offset
    while offset + 8 <= size:
        handle.seek(offset)
        first, second = struct.unpack("<II", handle.read(8))
        prefix, length = (8, second) if first == _CONTINUATION else (4, first)  # without the mark before Arrow 0.15
        if length == 0:
            return
        if length > min(_MAX_HEADER_BYTES, size - offset - prefix):
            raise _broken(location, f"no message begins at byte {offset}")
        handle.seek(offset + prefix)
        header = bytes(handle.read(length))
        message = struct.unpack_from("<I", header)[0]
        body_bytes = _number(header, message, _BODY_LENGTH, "<q")
        if not 0 <= body_bytes <= size - offset - prefix - length:
            raise _broken(location, f"the message at byte {offset} goes on beyond its end")
        kind = _number(header, message, _HEADER_TYPE, "<B")
        if kind not in ((_SCHEMA,) if offset == start else (_DICTIONARY, _BATCH)):
            raise _broken(location, f"the message at byte {offset} is damaged")
        num_rows = _num_rows(header, _follow(header, message, _HEADER)) if kind == _BATCH else 0
        yield kind, BatchPlace(offset, num_rows, body_bytes)
        offset += prefix + length + body_bytes


def _num_rows(header: bytes, batch: int) -> int:
    """Rows of a batch; each of its columns has as many, or one of the two numbers is damaged."""
    num_rows = _number(header, batch, _NUM_ROWS, "<q")
    nodes = _follow(header, batch, _NODES) if _place(header, batch, _NODES) else None
    if nodes is None or struct.unpack_from("<I", header, nodes)[0] == 0:
        raise ValueError("a batch has no columns")
    (length,) = struct.unpack_from("<q", header, nodes + 4)
    if not 0 <= num_rows == length:
        raise ValueError(f"a batch of {num_rows} rows has a column of {length}")
    return num_rows


def _has_footer(handle: Any) -> bool:
    handle.seek(max(0, handle.size() - len(FILE_MAGIC)))
    return bytes(handle.read()) == FILE_MAGIC


def _number(header: bytes, table: int, field: int, format_: str) -> int:
    """A number in a flatbuffer's table; 0 where it is absent."""
    place = _place(header, table, field)
    return int(struct.unpack_from(format_, header, place)[0]) if place else 0


def _follow(header: bytes, table: int, field: int) -> int:
    """Where the table lies that a field refers to."""
    place = _place(header, table, field)
    return place + int(struct.unpack_from("<I", header, place)[0])


def _place(header: bytes, table: int, field: int) -> int:
    """Where a field of a table lies; 0 where it is absent."""
    vtable = table - struct.unpack_from("<i", header, table)[0]
    if vtable < 0:
        raise ValueError("a header is damaged")
    entry = 4 + 2 * field
    if entry >= struct.unpack_from("<H", header, vtable)[0]:
        return 0
    offset = int(struct.unpack_from("<H", header, vtable + entry)[0])
    return table + offset if offset else 0


def _broken(location: Location, why: str) -> InputError:
    return InputError(
        f"{location}: not an Arrow file or stream, or cut short: {why}. Write it again or take it out of input.path"
    )
