"""Opening a picture of a format that is on the list, by its content and never by a name.

Pillow reads all of them but HEIF, which takes pillow-heif; that is asked only for bytes that are HEIF, and Pillow does
not learn of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.pictures.signatures import camera_raw, is_heif

# JPEG includes MPO, the format of two-lens cameras; PPM is PBM, PGM, PPM and PFM.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
_PREFIX_BYTES = 16


def open_picture(data: bytes, max_pixels: int | None = None) -> ImageFile:
    """What `Image.open` does for the listed formats, without its own size limit: ours is the spec's.

    Raises:
        RowError: IMAGE_TOO_LARGE; IMAGE_UNREADABLE for what needs an extra or another program.
        Exception: whatever a decoder raises.
    """
    if data.startswith(b"\0\0\1\0"):  # an icon is decoded when it is opened
        for width, height in _icon_sizes(data):
            _check_pixels(width, height, max_pixels)
    image = _open_heif(data) if is_heif(data) else _open(data)
    _check_pixels(image.width, image.height, max_pixels)
    if image.format == "TIFF" and (name := camera_raw(data, image)):
        raise RowError(ErrorCode.IMAGE_UNREADABLE, f"the picture is {name}; develop it to JPEG or TIFF first")
    return image


def _open(data: bytes) -> ImageFile:
    Image.preinit()
    if any(name not in Image.OPEN for name in FORMATS):
        Image.init()
    problem: Exception | None = None
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is not None and accept is not None and accept(data[:_PREFIX_BYTES]) is True:
            try:
                return factory(BytesIO(data), "")
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                problem = error
    raise problem or UnidentifiedImageError(f"no picture of a known format ({', '.join(FORMATS)}, HEIF)")


def _open_heif(data: bytes) -> ImageFile:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise RowError(
            ErrorCode.IMAGE_UNREADABLE,
            "the picture is HEIC; install ray_job[heif] on every machine to read it: pip install 'ray_job[heif]'",
        ) from None
    heif: Any = HeifImageFile
    image: ImageFile = heif(BytesIO(data), "")
    return image


def _icon_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """What the headers of the pictures in an icon promise, whatever its directory says."""
    for place in range(6, min(len(data) - 15, 6 + 16 * int.from_bytes(data[4:6], "little")), 16):
        start = int.from_bytes(data[place + 12 : place + 16], "little")
        if len(data) >= start + 24:
            is_png = data[start : start + 4] == b"\x89PNG"
            at, order = (start + 16, ">II") if is_png else (start + 4, "<ii")
            width, height = struct.unpack_from(order, data, at)
            yield abs(width), abs(height) // (1 if is_png else 2)


def _check_pixels(width: int, height: int, max_pixels: int | None) -> None:
    if max_pixels is not None and width * height > max_pixels:
        raise RowError(
            ErrorCode.IMAGE_TOO_LARGE,
            f"{width} × {height} pixels; limits.max_pixels is {max_pixels}. Shrink the picture or raise the limit",
        )
