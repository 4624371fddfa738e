"""A picture as a viewer shows it: turned upright, its colours in sRGB, what is transparent over a background.

Grey of more than 8 bits is scaled to its range (`levels.py`). A colour profile that is broken, or does not fit the
picture, is ignored. Of an animation the first frame counts, not the picture for programs that know no animations.
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms
from PIL.ImageFile import ImageFile

from ray_job.inputs.pictures.levels import WIDE_MODES, to_8_bits
from ray_job.inputs.pictures.png import has_late_metadata, transparency_at_8_bits
from ray_job.inputs.pictures.rules import Rgb

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_THE_SIDE = (5, 6, 7, 8)
_WITH_UNUSED_ALPHA = ("BMP", "ICO")  # often the fourth byte is not filled; browsers, too, then ignore it


def as_shown(image: ImageFile, data: bytes, background: Rgb) -> Image.Image:
    """The opened picture as RGB; `data` are its bytes."""
    if getattr(image, "default_image", False):
        image.seek(1)
    box = image.tile[0][1] if image.format == "GIF" and image.tile else None
    image.load()
    orientation = _orientation(image, data)
    colours, alpha = _colours_and_alpha(image, data)
    if image.format in _WITH_UNUSED_ALPHA and alpha is not None and alpha.getextrema() == (0, 0):
        alpha = None
    shown = _over(_in_srgb(colours, image.info.get("icc_profile")), alpha, background)
    if box is not None and box != (0, 0, *image.size):
        shown = _placed(shown, box, background)
    return shown.transpose(_TURNS[orientation]) if orientation in _TURNS else shown


def size_as_shown(image: ImageFile, data: bytes) -> tuple[int, int]:
    """Width and height of what `as_shown` gives, mostly without decoding."""
    orientation = _orientation(image, data)
    width, height = image.size
    return (height, width) if orientation in _ON_THE_SIDE else (width, height)


def _orientation(image: ImageFile, data: bytes) -> int:
    """1 to 8 as EXIF counts; 1 where a decoder has turned the picture already, as those of TIFF and HEIF do."""
    if image.format in ("TIFF", "HEIF"):
        return 1
    if image.format == "PNG" and has_late_metadata(data):
        image.load()
    try:
        orientation = Image.Image.getexif(image).get(_ORIENTATION)  # PNG's own would decode the picture
    except Exception:  # parsers raise almost anything on damaged metadata, and the picture is good without it
        return 1
    return orientation if isinstance(orientation, int) else 1


def _colours_and_alpha(image: ImageFile, data: bytes) -> tuple[Image.Image, Image.Image | None]:
    """The colours in a mode that profiles are for, and how opaque they are; None: all of them."""
    if image.mode in WIDE_MODES:
        return to_8_bits(image), _alpha_of_level(image)
    plain = _with_plain_alpha(image, data)
    if plain.mode in ("RGBA", "LA"):
        return plain.convert(plain.mode[:-1]), plain.getchannel("A")
    return plain if plain.mode in ("L", "RGB", "CMYK", "LAB") else plain.convert("RGB"), None


def _with_plain_alpha(image: ImageFile, data: bytes) -> Image.Image:
    """The picture with a channel for alpha, however it has it."""
    if image.mode in ("RGBa", "La"):
        return image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    if "transparency" not in image.info:
        return image
    image.info["transparency"] = transparency_at_8_bits(image, data)
    grey = image.convert("L") if image.mode == "1" else image
    return grey.convert("LA" if grey.mode == "L" else "RGBA")


def _alpha_of_level(image: Image.Image) -> Image.Image | None:
    """Alpha where one level of a grey picture of 16 bits stands for nothing."""
    level = image.info.get("transparency")
    if not isinstance(level, int):
        return None
    return Image.fromarray(np.where(np.asarray(image) == level, np.uint8(0), np.uint8(255)))


def _in_srgb(colours: Image.Image, profile: bytes | None) -> Image.Image:
    """The colours as RGB; a profile that does not fit them is ignored."""
    try:
        if colours.mode == "LAB":
            lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
            return _transformed(colours, lab)
        if profile:
            return _transformed(colours, ImageCms.ImageCmsProfile(BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        pass
    return colours.convert("RGB")


def _transformed(colours: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    transform = ImageCms.buildTransform(profile, srgb, colours.mode, "RGB")
    if colours.mode == "RGB":
        sample = ImageCms.applyTransform(_many_colours(), transform)
        if sample is not None and sample.tobytes() == _many_colours().tobytes():
            return colours  # sRGB itself, as most have: changing nothing takes longer than decoding
        ImageCms.applyTransform(colours, transform, inPlace=True)
        return colours
    shown = ImageCms.applyTransform(colours, transform)
    assert shown is not None
    return shown


@lru_cache(maxsize=1)
def _many_colours() -> Image.Image:
    """Colours from all over the cube."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(len(steps), -1, 3))


def _over(colours: Image.Image, alpha: Image.Image | None, background: Rgb) -> Image.Image:
    if alpha is None or alpha.getextrema() == (255, 255):
        return colours
    canvas = Image.new("RGB", colours.size, background)
    canvas.paste(colours, mask=alpha)
    return canvas


def _placed(shown: Image.Image, box: tuple[int, int, int, int], background: Rgb) -> Image.Image:
    """A first frame that fills a part of the canvas: what it does not draw is transparent."""
    canvas = Image.new("RGB", shown.size, background)
    canvas.paste(shown.crop(box), box)
    return canvas
