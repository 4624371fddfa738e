"""Pictures that end too early: whether the end is there, and an end made up for those that may lack it.

Pillow can be told to overlook missing bytes, but only for all pictures of a process at once. Here the picture gets the
bytes instead: the marker that ends a JPEG, missing rows of a PNG, missing blocks of a GIF, and zeros for the others.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from PIL.ImageFile import ImageFile

from ray_job.inputs.pictures import gif, png
from ray_job.inputs.pictures.tiff_end import SIGNATURES, tiff_end

_JPEG_END = b"\xff\xd9"
_COMPRESSION, _JPEG_TABLES, _AS_JPEG = 259, 347, 7


def has_its_end(image: ImageFile, data: bytes) -> bool:
    """Whether the end of an opened picture is surely there; False also where only decoding it can tell."""
    match image.format:
        case "JPEG" | "MPO":
            return data.find(_JPEG_END, _jpeg_scan(data)) >= 0 and _is_usual_jpeg(data)
        case "PNG":
            return b"IEND" in data[-12:]
        case "GIF":
            return data.endswith(b"\0;")
        case "WEBP" | "ICO":  # are refused or decoded when they are opened
            return True
        case "TIFF":
            return _has_tiff_end(image, data)
        case "AVIF" | "HEIF":
            return _boxes_end(data) <= len(data)
        case "JPEG2000":
            return _JPEG_END in data[-4:]
    return False


def completed(data: bytes) -> bytes:
    """A picture cut short with an end, so that it can be decoded if at least about half of it is there.

    Of JPEG and GIF, which do not tell how long they are, any part of the pixels will do.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return data + _JPEG_END * 2 if _jpeg_scan(data) < len(data) else data
    try:
        if data.startswith(png.SIGNATURE):
            return png.completed(data)
        if data.startswith(gif.SIGNATURE):
            return gif.completed(data)
    except (zlib.error, struct.error, IndexError, StopIteration):
        return data
    return data + bytes(len(data))


def is_truncated(data: bytes, error: Exception) -> bool:
    """Whether a picture that cannot be decoded lacks its end."""
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return True
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg_header(data)[1]
    if data[:4] == b"RIFF":  # WebP says how long it is
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data.startswith(png.SIGNATURE):
        return b"IEND" not in data[-16:]
    if data.startswith(SIGNATURES):
        return tiff_end(data) > len(data)
    if data[:4] == b"\0\0\1\0":
        return _icon_end(data) > len(data)
    if data[4:8] == b"ftyp":
        return _boxes_end(data) > len(data)
    if data[4:8] == b"jP  " or data[:4] == b"\xff\x4f\xff\x51":
        return _JPEG_END not in data[-4:]
    return data.startswith(gif.SIGNATURE) and not data.endswith(b";")


def _jpeg_scan(data: bytes) -> int:
    """Where the pixels of the first scan begin, behind all previews in the header; the file's length if nowhere."""
    return _jpeg_header(data)[0]


def _jpeg_header(data: bytes) -> tuple[int, bool]:
    """Where the pixels of the first scan begin, and whether the file ends before."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        if data[place + 1] == 0xFF:  # may fill
            place += 1
            continue
        is_scan = data[place + 1] == 0xDA
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if is_scan:
            return min(place, len(data)), place > len(data)
    return len(data), place + 4 > len(data)


def _is_usual_jpeg(data: bytes) -> bool:
    """Whether its pixels are coded in a way that all decoders know: baseline, extended or progressive."""
    head = data[: _jpeg_scan(data)]
    return re.search(rb"\xff[\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]\0", head) is None


def _has_tiff_end(image: ImageFile, data: bytes) -> bool:
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    # Tables of an old JPEG may have stood behind its pixels.
    is_sure = tags.get(_COMPRESSION) != _AS_JPEG or _JPEG_TABLES in tags
    return is_sure and tiff_end(data) <= len(data)


def _icon_end(data: bytes) -> int:
    """Where the last picture of an icon ends."""
    count = int.from_bytes(data[4:6], "little")
    sizes = (struct.unpack_from("<II", data, place) for place in range(14, min(len(data) - 7, 6 + 16 * count), 16))
    return max([6 + 16 * count, *(int(size + start) for size, start in sizes)])


def _boxes_end(data: bytes) -> int:
    """Where the last box of an ISO media file ends, by its own account."""
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        if size < 8:  # 0: to the end of the file
            return len(data)
        place += size
    return max(place, len(data)) if place >= len(data) else place + 8
