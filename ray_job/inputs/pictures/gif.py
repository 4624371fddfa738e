"""The blocks of a GIF file, for one that is cut short."""

from __future__ import annotations

SIGNATURE = b"GIF8"
_EXTENSION, _FRAME = 0x21, 0x2C
_MOST_FILLING_BYTES = 2**26


def completed(data: bytes) -> bytes:
    """A picture whose first frame is cut short, its missing pixels those of the first colour; others as they are.

    Raises:
        IndexError: it ends before the pixels begin.
    """
    place = 13 + _num_palette_bytes(data[10])
    while data[place] == _EXTENSION:
        place = _behind_blocks(data, place + 2)
    if data[place] != _FRAME:
        return data
    start = place + 11 + _num_palette_bytes(data[place + 9])  # behind the size of codes
    end = _behind_blocks(data, start)
    if end < len(data) or start + 2 > len(data):
        return data
    width, height = (int.from_bytes(data[at : at + 2], "little") for at in (6, 8))
    # A code of nothing but zeros is a pixel, and has 12 bits at most.
    num_blocks = 1 + min(width * height * 2, _MOST_FILLING_BYTES) // 255
    return data + bytes(max(0, end - 1 - len(data))) + (b"\xff" + bytes(255)) * num_blocks + b"\0;"


def _num_palette_bytes(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _behind_blocks(data: bytes, place: int) -> int:
    """Where the next thing stands behind blocks that begin here; beyond the end where the last is cut short."""
    while place < len(data) and data[place]:
        place += 1 + data[place]
    return place + 1
