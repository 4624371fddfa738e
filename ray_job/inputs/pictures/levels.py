"""Grey of 16 and 32 bits and of floats as 8 bits, scaled to its range instead of cut off at 255.

16 bits: from 0 to the end of the range: 65535 where the format fixes it (JPEG 2000, PNM), else the end of the least of
8, 10, 12, 14 and 16 bits that holds the largest level, as cameras and scanners leave the upper bits empty. Floats from
0 to 1: that range. Other floats, and 32 bits: from the least to the largest level, both finite; where all are the same,
the level itself, as 8 bits. What is not a number is black. A TIFF whose zero is white is turned round.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops
from PIL.ImageFile import ImageFile

WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_STRIP_PIXELS = 2**20
_BITS = (8, 10, 12, 14, 16)
_WITH_FULL_RANGE = ("JPEG2000", "PPM")
_PHOTOMETRIC, _SAMPLE_FORMAT, _BITS_PER_SAMPLE = 262, 339, 258
_UNSIGNED = 1


def to_8_bits(image: ImageFile) -> Image.Image:
    """A picture of one of `WIDE_MODES` in mode L, made in strips."""
    low, high = _range(image)
    grey = Image.new("L", image.size)
    top = 0
    for strip in _strips(image):
        levels = (strip.astype(np.float64) - low) * (255 / (high - low))
        levels = np.rint(np.clip(np.nan_to_num(levels, nan=0.0), 0, 255)).astype(np.uint8)
        grey.paste(Image.fromarray(levels), (0, top))
        top += len(strip)
    return ImageChops.invert(grey) if _tag(image, _PHOTOMETRIC) == 0 else grey


def _range(image: ImageFile) -> tuple[float, float]:
    """The levels that become black and white, never the same."""
    low, high = np.inf, -np.inf
    for strip in _strips(image):
        finite = strip[np.isfinite(strip)] if strip.dtype.kind == "f" else strip
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if image.format in _WITH_FULL_RANGE and image.mode != "F":
        return 0.0, 65535.0
    if image.mode not in ("I", "F"):
        declared = _tag(image, _BITS_PER_SAMPLE)
        bits = declared if declared == 12 else next(bits for bits in _BITS if high < 2**bits)
        return 0.0, float(2**bits - 1)
    if image.mode == "F" and (low >= 0 and high <= 1):
        return 0.0, 1.0
    return (low, high) if low < high else (0.0, 255.0)


def _strips(image: ImageFile) -> Iterator[npt.NDArray[Any]]:
    """The levels of some rows at a time, of shape (rows, width)."""
    rows = max(1, _STRIP_PIXELS // image.width)
    is_unsigned = image.mode == "I" and _tag(image, _SAMPLE_FORMAT) == _UNSIGNED and _tag(image, _BITS_PER_SAMPLE) == 32
    for top in range(0, image.height, rows):
        levels = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        yield levels.view(np.uint32) if is_unsigned else levels


def _tag(image: ImageFile, tag: int) -> int | None:
    """A number that TIFF declares; None for other formats."""
    value = getattr(image, "tag_v2", {}).get(tag)
    if isinstance(value, tuple) and value:
        value = value[0]
    return value if isinstance(value, int) else None
