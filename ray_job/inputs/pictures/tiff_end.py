"""Where a TIFF ends by its own account: its first directory, the values that do not fit into it, and its pixels."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {3: "H", 4: "I", 16: "Q"}
_PIXELS = ((273, 279), (324, 325))  # tags of where strips and tiles are, and of how many bytes
_UNKNOWN = 2**63


class _Entry(NamedTuple):
    """One tag's values, wherever they stand."""

    tag: int
    kind: int
    number: int
    start: int
    end: int


def tiff_end(data: bytes) -> int:
    """Behind the last byte that it needs; beyond every file where not even that is there."""
    order = "<" if data[:1] == b"I" else ">"
    try:
        end, entries = _directory(data, order)
    except struct.error:
        return _UNKNOWN
    ends = [end, *(entry.end for entry in entries)]
    by_tag = {entry.tag: entry for entry in entries}
    for starts, counts in _PIXELS:
        pairs = zip(*(_numbers(data, order, by_tag.get(tag)) for tag in (starts, counts)), strict=False)
        ends += [start + count for start, count in pairs]
    return max(ends)


def _directory(data: bytes, order: str) -> tuple[int, list[_Entry]]:
    """Where the first directory ends, and its entries. Raises struct.error: it is cut short."""
    is_big = b"+" in data[2:4]
    word, at, size, inline = ("Q", 8, 20, 8) if is_big else ("I", 4, 12, 4)
    (place,) = struct.unpack_from(order + word, data, at)
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, place)
    place += 8 if is_big else 2
    if place + size * count > len(data):
        raise struct.error("cut short")
    entries = []
    for start in range(place, place + size * count, size):
        tag, kind, number = struct.unpack_from(f"{order}HH{word}", data, start)
        num_bytes = _TYPE_BYTES.get(kind, 0) * number
        values = start + size - inline
        if num_bytes > inline:
            (values,) = struct.unpack_from(order + word, data, values)
        entries.append(_Entry(tag, kind, number, values, values + num_bytes))
    return place + size * count, entries


def _numbers(data: bytes, order: str, entry: _Entry | None) -> Iterator[int]:
    """Values of an entry, as far as there are bytes."""
    if entry is None or entry.kind not in _INTEGERS or entry.end > len(data):
        return iter(())
    return iter(struct.unpack_from(f"{order}{entry.number}{_INTEGERS[entry.kind]}", data, entry.start))
