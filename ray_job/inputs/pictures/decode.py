"""A row's pictures: which there are, and how their encoded bytes are decoded safely. `references.py` reads them.

Any failure is the row's error. Only formats on a list are decoded (`formats.py`), only within a pixel limit that is
checked before decoding. By the rules of the job, a picture becomes what a viewer shows (`as_shown.py`), or its colours
become RGB exactly as `Image.convert("RGB")` makes them, as the official processors do: then alpha is dropped and EXIF
rotation ignored (Pillow itself applies it to TIFF). Of an animation the first frame counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from PIL import Image
from PIL.ImageFile import ImageFile

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.documents.tiff import turn_to
from ray_job.inputs.pictures.as_shown import as_shown, size_as_shown
from ray_job.inputs.pictures.damage import damaged
from ray_job.inputs.pictures.formats import open_picture
from ray_job.inputs.pictures.png import without_texts
from ray_job.inputs.pictures.rules import PictureRules
from ray_job.inputs.pictures.truncated import completed, has_its_end
from ray_job.spec import LimitsSpec

_AS_SHOWN = PictureRules()
_T = TypeVar("_T")


def pictures_of(row: Mapping[str, Any], image_columns: Sequence[str]) -> list[Any]:
    """The values of a row's pictures, in order of columns and within lists; each is for `read_picture`.

    A null in a list stays, and so does a null where no column has a picture: fetching it fails, because the picture
    is missing. Beside other columns with pictures a null column is one not used. An empty list means no pictures.
    """
    values: list[Any] = []
    for column in image_columns:
        value = row[column]
        if isinstance(value, list | tuple):
            values += value
        elif value is not None:
            values.append(value)
    if not values and any(row[column] is None for column in image_columns):
        return [None]
    return values


def decode(data: bytes, limits: LimitsSpec, rules: PictureRules = _AS_SHOWN, frame: int | None = None) -> Image.Image:
    """The picture as RGB; of a TIFF the frame asked for, or its only page.

    Raises:
        RowError: IMAGE_EMPTY, IMAGE_TOO_LARGE, IMAGE_TRUNCATED, IMAGE_UNREADABLE, or OUT_OF_MEMORY.
    """

    return _opened(data, limits.max_pixels, rules, partial(_in_rgb, rules=rules, frame=frame, limits=limits))


def picture_size(data: bytes, limits: LimitsSpec | None = None, rules: PictureRules = _AS_SHOWN) -> tuple[int, int]:
    """Width and height in pixels as `decode` gives them, from the header, and from the end of what is there.

    A picture whose end is missing, or whose format does not tell, is decoded to see whether it can be.

    Raises:
        RowError: as `decode`; IMAGE_TOO_LARGE only where limits are given.
    """

    def size(image: ImageFile, used: bytes) -> tuple[int, int]:
        is_whole = used is data and has_its_end(image, data)  # what was made up is known to be good when it is decoded
        if limits is not None and not is_whole:
            return _in_rgb(image, used, rules, None, limits).size
        turn_to(image, None, None if limits is None else limits.max_pixels)
        return size_as_shown(image, used) if rules.are_as_shown else image.size

    return _opened(data, None if limits is None else limits.max_pixels, rules, size)


def _in_rgb(image: ImageFile, data: bytes, rules: PictureRules, frame: int | None, limits: LimitsSpec) -> Image.Image:
    turn_to(image, frame, limits.max_pixels)
    if rules.are_as_shown:
        return as_shown(image, data, rules.background)
    image.load()
    # Alpha in a palette makes Pillow warn that it is dropped, which is what is wanted.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _opened(data: bytes, max_pixels: int | None, rules: PictureRules, use: Callable[[ImageFile, bytes], _T]) -> _T:
    """Opens a picture and uses it; one cut short a second time with its end made up, where the rules accept that."""
    if not data:
        raise RowError(ErrorCode.IMAGE_EMPTY, "the picture has zero bytes")
    try:
        return _named(data, max_pixels, use)
    except RowError as error:
        if not rules.accept_truncated or error.code != ErrorCode.IMAGE_TRUNCATED:
            raise
        try:
            return _named(completed(data), max_pixels, use)
        except RowError:
            raise error from None


def _named(data: bytes, max_pixels: int | None, use: Callable[[ImageFile, bytes], _T]) -> _T:
    """Opens a picture, uses it, and names whatever goes wrong."""
    try:
        # Decoders warn about odd metadata of a picture that is good otherwise.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return use(open_picture(data, max_pixels), data)
            except ValueError as error:
                if "MAX_TEXT" not in str(error):
                    raise
                data = without_texts(data)  # what a PNG tells in words is no part of the picture
                return use(open_picture(data, max_pixels), data)
    except RowError:
        raise
    except Image.DecompressionBombError as error:
        raise RowError(ErrorCode.IMAGE_TOO_LARGE, str(error)) from None
    except MemoryError:
        raise RowError(ErrorCode.OUT_OF_MEMORY, f"no memory to decode a picture of {len(data)} bytes") from None
    except Exception as error:  # decoders raise almost anything on damaged bytes, and all of it is the row's
        raise damaged(data, error) from None
