"""Lines of a byte stream: numbered, capped, never longer in memory than the cap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

CHUNK_BYTES = 2**20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank."""

    number: int  # from 1, blank lines counted: what an editor shows
    start: int  # offset in bytes of its first byte
    end: int  # offset behind its newline
    content: bytes | None  # without the newline; None where it is longer than the cap


def iter_lines(stream: Any, max_bytes: int, *, start: int = 0, first_number: int = 1) -> Iterator[Line]:
    """Lines that are not blank, from where the stream stands to its end; `\\n` and `\\r\\n` end a line.

    Args:
        stream: has `read(size) -> bytes`.
        max_bytes: a longer line is passed over without being held.
        start: offset of the stream's position in the file.
        first_number: number of the line that begins there.
    """
    number, line_start, offset = first_number, start, start
    pieces: list[bytes] = []
    held = 0
    while chunk := stream.read(CHUNK_BYTES):
        begin = 0
        while (newline := chunk.find(b"\n", begin)) >= 0:
            _hold(pieces, chunk[begin:newline], max_bytes - held)
            line = _line(number, line_start, offset + newline + 1, pieces, held + newline - begin > max_bytes)
            if line is not None:
                yield line
            begin, held, pieces = newline + 1, 0, []
            number, line_start = number + 1, offset + begin
        _hold(pieces, chunk[begin:], max_bytes - held)
        held += len(chunk) - begin
        offset += len(chunk)
    last = _line(number, line_start, offset, pieces, held > max_bytes)
    if last is not None:
        yield last


def _hold(pieces: list[bytes], piece: bytes, room: int) -> None:
    if len(piece) <= room:
        pieces.append(piece)
    else:
        pieces.clear()


def _line(number: int, start: int, end: int, pieces: list[bytes], is_too_long: bool) -> Line | None:
    if is_too_long:
        return Line(number, start, end, None)
    content = b"".join(pieces)
    if start == 0:
        content = content.removeprefix(_BOM)
    content = content.removesuffix(b"\r")
    return Line(number, start, end, content) if content.strip() else None
