"""Pictures stored as users have them: some turned by a camera, some transparent, some of 16 bits.

Whoever shows them as a viewer does sees the picture that was drawn; whoever takes the stored pixels does not.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from ray_job.demo.pictures import Scene, draw, encode

_FORMATS = ("JPEG", "PNG", "WEBP")
_PERIOD = 8  # of so many pictures one is turned, one transparent, one of 16 bits
_ORIENTATION = 0x0112
# How a camera that was held so stores what it saw; a viewer turns it back.
_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def stored(scene: Scene, number: int, needs_colour: bool) -> tuple[str, bytes]:
    """The suffix and the bytes of a scene's picture.

    Args:
        number: of the picture in the demo; decides how it is stored.
        needs_colour: whether it is asked about colours, which 16 bits of grey do not have.
    """
    way = number % _PERIOD
    if way == 1:
        return "jpeg", _turned(draw(scene), 2 + number // _PERIOD % len(_STORED))
    if way == 3:
        return "png", encode(_without_background(scene), "PNG")
    if way in (5, 7) and not needs_colour:
        levels = np.asarray(draw(scene).convert("L")).astype(np.uint16) * 257
        return "png", encode(Image.fromarray(levels), "PNG")
    kind = _FORMATS[number % len(_FORMATS)]
    return kind.lower(), encode(draw(scene), kind)


def _turned(picture: Image.Image, orientation: int) -> bytes:
    exif, buffer = Image.Exif(), BytesIO()
    exif[_ORIENTATION] = orientation
    picture.transpose(_STORED[orientation]).save(buffer, "JPEG", quality=90, exif=exif)
    return buffer.getvalue()


def _without_background(scene: Scene) -> Image.Image:
    """Clear where nothing was drawn, and black beneath."""
    pixels = np.asarray(draw(scene))
    is_clear = np.logical_or(*((pixels == colour).all(-1) for colour in scene.background))
    alpha = np.where(is_clear, np.uint8(0), np.uint8(255))
    return Image.fromarray(np.dstack([pixels * (alpha[..., None] > 0), alpha]))
