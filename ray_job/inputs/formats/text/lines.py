"""Lines of a byte stream: numbered, capped, never longer in memory than the cap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ray_job.inputs.formats.text.records import CHUNK_BYTES, Record

_BOM = b"\xef\xbb\xbf"


def iter_lines(stream: Any, max_bytes: int, *, start: int = 0, first_number: int = 1) -> Iterator[Record]:
    """Lines that are not blank, from where the stream stands to its end; `\\n` and `\\r\\n` end a line.

    Args:
        stream: has `read(size) -> bytes`.
        max_bytes: a longer line is passed over without being held.
        start: offset of the stream's position in the file.
        first_number: number of the line that begins there.
    """
    for line in iter_all_lines(stream, max_bytes, start=start, first_number=first_number):
        if line.content is None or line.content.strip():
            yield line


def iter_all_lines(stream: Any, max_bytes: int, *, start: int = 0, first_number: int = 1) -> Iterator[Record]:
    """The same with blank lines among them."""
    number, line_start, offset = first_number, start, start
    pieces: list[bytes] = []
    held = 0
    while chunk := stream.read(CHUNK_BYTES):
        begin = 0
        while (newline := chunk.find(b"\n", begin)) >= 0:
            _hold(pieces, chunk[begin:newline], max_bytes - held)
            yield _line(number, line_start, offset + newline + 1, pieces, held + newline - begin > max_bytes)
            begin, held, pieces = newline + 1, 0, []
            number, line_start = number + 1, offset + begin
        _hold(pieces, chunk[begin:], max_bytes - held)
        held += len(chunk) - begin
        offset += len(chunk)
    if held:
        yield _line(number, line_start, offset, pieces, held > max_bytes)


def _hold(pieces: list[bytes], piece: bytes, room: int) -> None:
    if len(piece) <= room:
        pieces.append(piece)
    else:
        pieces.clear()


def _line(number: int, start: int, end: int, pieces: list[bytes], is_too_long: bool) -> Record:
    if is_too_long:
        return Record(number, start, end, None)
    content = b"".join(pieces)
    if start == 0:
        content = content.removeprefix(_BOM)
    return Record(number, start, end, content.removesuffix(b"\r"))
