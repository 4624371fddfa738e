"""A row's pictures: which there are, and how their encoded bytes are decoded safely. `references.py` reads them.

Any failure is the row's error. Only formats on a list are decoded, only within a pixel limit that is checked before
decoding, and colours become RGB exactly as `Image.convert("RGB")` makes them, as the official processors do: alpha
is dropped, EXIF rotation ignored (Pillow itself applies it to TIFF), of an animation the first frame counts.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any, TypeVar

from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.documents.tiff import turn_to
from ray_job.spec import LimitsSpec

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # JPEG includes MPO, the format of two-lens cameras
_PREFIX_BYTES = 16
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


def decode(data: bytes, limits: LimitsSpec, frame: int | None = None) -> Image.Image:
    """The picture as RGB; of a TIFF the frame asked for, or its only page.

    Raises:
        RowError: IMAGE_EMPTY, IMAGE_TOO_LARGE, IMAGE_TRUNCATED, IMAGE_UNREADABLE, or OUT_OF_MEMORY.
    """

    def convert(image: ImageFile) -> Image.Image:
        turn_to(image, frame, limits.max_pixels)
        _check_pixels(image.width, image.height, limits.max_pixels)
        image.load()
        # Alpha in a palette makes Pillow warn that it is dropped, which is what is wanted.
        image.info.pop("transparency", None)
        return image.convert("RGB")

    return _opened(data, limits, convert)


def picture_size(data: bytes, limits: LimitsSpec | None = None) -> tuple[int, int]:
    """Width and height in pixels, from the header alone.

    Raises:
        RowError: IMAGE_EMPTY, IMAGE_TRUNCATED, IMAGE_UNREADABLE; IMAGE_TOO_LARGE where limits are given.
    """

    def size(image: ImageFile) -> tuple[int, int]:
        turn_to(image, None, None)
        if limits is not None:
            _check_pixels(image.width, image.height, limits.max_pixels)
        return image.width, image.height

    return _opened(data, limits, size)


def _opened(data: bytes, limits: LimitsSpec | None, use: Callable[[ImageFile], _T]) -> _T:
    """Opens a picture, uses it, and names whatever goes wrong."""
    if not data:
        raise RowError(ErrorCode.IMAGE_EMPTY, "the picture has zero bytes")
    try:
        # Decoders warn about odd metadata of a picture that is good otherwise.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return use(_open(data))
    except RowError:
        raise
    except Image.DecompressionBombError as error:
        raise RowError(ErrorCode.IMAGE_TOO_LARGE, str(error)) from None
    except MemoryError:
        raise RowError(ErrorCode.OUT_OF_MEMORY, f"no memory to decode a picture of {len(data)} bytes") from None
    except Exception as error:  # decoders raise almost anything on damaged bytes, and all of it is the row's
        raise _damaged(data, error) from None


def _open(data: bytes) -> ImageFile:
    """What `Image.open` does for the listed formats, without its own size limit: ours is the spec's."""
    Image.preinit()
    if any(name not in Image.OPEN for name in FORMATS):
        Image.init()
    problem: Exception | None = None
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(data[:_PREFIX_BYTES]) is True:
            try:
                return factory(BytesIO(data), "")
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                problem = error
    raise problem or UnidentifiedImageError(f"no picture of a known format ({', '.join(FORMATS)})")


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise RowError(
            ErrorCode.IMAGE_TOO_LARGE,
            f"{width} × {height} pixels; limits.max_pixels is {max_pixels}. Shrink the picture or raise the limit",
        )


def _damaged(data: bytes, error: Exception) -> RowError:
    if isinstance(error, UnidentifiedImageError):
        begins = f"; it begins with {data[:8]!r}" if len(data) >= _PREFIX_BYTES else f", and of {len(data)} bytes only"
        return RowError(ErrorCode.IMAGE_UNREADABLE, f"{error}{begins}")
    text = f"{str(error)[:200] or type(error).__name__}"
    if _is_truncated(data, error):
        return RowError(ErrorCode.IMAGE_TRUNCATED, f"the picture ends too early, after {len(data)} bytes: {text}")
    return RowError(ErrorCode.IMAGE_UNREADABLE, f"the picture is damaged: {text}")


def _is_truncated(data: bytes, error: Exception) -> bool:
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return True
    if data[:4] == b"RIFF":  # WebP says how long it is
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return b"IEND" not in data[-16:]
    if data[:4] in (b"II*\0", b"MM\0*"):  # TIFF keeps its directory where the header points
        return len(data) < 8 or int.from_bytes(data[4:8], "little" if data[:1] == b"I" else "big") + 6 > len(data)
    return data[:3] == b"GIF" and isinstance(error, IndexError | struct.error | OSError) and data[-1:] != b";"
