"""The chunks of a PNG file, for what its decoder does not offer."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from PIL.ImageFile import ImageFile

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_METADATA = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
_OF_ANIMATIONS = (b"acTL", b"fcTL", b"fdAT")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# Columns and rows of each of Adam7's passes: first one, and step.
_ADAM7 = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))
_MAX_PROFILE_BYTES = 2**20  # what Pillow reads


class Chunk(NamedTuple):
    """One chunk; the last may be cut short."""

    kind: bytes
    body: memoryview
    whole: memoryview  # with length, kind and checksum


def chunks(data: bytes) -> Iterator[Chunk]:
    """The chunks as far as there are bytes."""
    view, place = memoryview(data), len(SIGNATURE)
    while place + 8 <= len(data):
        size = int.from_bytes(view[place : place + 4], "big")
        kind = bytes(view[place + 4 : place + 8])
        yield Chunk(kind, view[place + 8 : place + 8 + size], view[place : place + 12 + size])
        place += 12 + size
        if kind == b"IEND":
            break


def without_texts(data: bytes) -> bytes:
    """The same picture without its texts, and without a profile larger than its decoder takes."""
    kept = [chunk.whole for chunk in chunks(data) if chunk.kind not in _TEXTS and not _is_large_profile(chunk)]
    return b"".join([SIGNATURE, *kept])


def has_late_metadata(data: bytes) -> bool:
    """Whether the orientation may stand behind the pixels, where a decoder finds it last."""
    is_late = False
    for kind, body, _ in chunks(data):
        if is_late and (kind == b"eXIf" or (kind in _TEXTS and bytes(body[:32]).startswith(_METADATA))):
            return True
        is_late |= kind == b"IDAT"
    return False


def transparency_at_8_bits(image: ImageFile, data: bytes) -> Any:
    """The transparent grey or colour of an opened picture by the levels its decoder gives.

    Pillow keeps what the file says, which is in the file's depth, and gives pixels of 8 bits. Of 16 bits the upper
    8 are compared, so that colours next to the transparent one are transparent, too.
    """
    value = image.info["transparency"]
    depth = data[24] if data.startswith(SIGNATURE) and len(data) > 24 else 8
    if isinstance(value, tuple):
        return tuple(level >> 8 if depth == 16 else level & 255 for level in value)
    if isinstance(value, int):
        return (value & 1) * 255 if image.mode == "1" else min(255, value * 255 // (2 ** min(depth, 8) - 1))
    return value


def completed(data: bytes) -> bytes:
    """A picture cut short with its missing rows empty; the same bytes where less than half of its rows is there.

    Raises:
        zlib.error, struct.error: it is damaged besides.
    """
    found = list(chunks(data))
    width, height, depth, colour, _, _, is_interlaced = struct.unpack_from(">IIBBBBB", found[0].body)
    num_bytes = _num_raw_bytes(width, height, depth * _CHANNELS.get(colour, 1), bool(is_interlaced))
    packed = b"".join(chunk.body for chunk in found if chunk.kind == b"IDAT")
    pixels = zlib.decompressobj().decompress(packed, num_bytes)
    if len(pixels) < num_bytes / 2:
        return data
    first = next(place for place, chunk in enumerate(found) if chunk.kind == b"IDAT")
    before = [chunk.whole for chunk in found[:first] if chunk.kind not in _OF_ANIMATIONS]
    body = zlib.compress(pixels + bytes(num_bytes - len(pixels)), 1)
    return b"".join([SIGNATURE, *before, _chunk(b"IDAT", body), _chunk(b"IEND", b"")])


def _num_raw_bytes(width: int, height: int, pixel_bits: int, is_interlaced: bool) -> int:
    """Of the rows with the filter in front of each, as they are before compression."""
    total = 0
    for left, across, top, down in _ADAM7 if is_interlaced else ((0, 1, 0, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        total += rows * (1 + -(-columns * pixel_bits // 8)) if columns > 0 and rows > 0 else 0
    return total


def _is_large_profile(chunk: Chunk) -> bool:
    if chunk.kind != b"iCCP":
        return False
    packed = bytes(chunk.body).partition(b"\0")[2][1:]
    try:
        return len(zlib.decompressobj().decompress(packed, _MAX_PROFILE_BYTES + 1)) > _MAX_PROFILE_BYTES
    except zlib.error:
        return True


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
