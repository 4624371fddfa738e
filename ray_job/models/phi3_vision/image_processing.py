"""A picture as the model sees it: its HD size, its number of tokens, and the resized and padded pixels.

The CPU half of preparation. It imports no torch, so prepare workers stay small; cutting crops and
normalising them is in `crops.py` and runs on the device. Bit for bit the official image processor of
Phi-3-vision-128k-instruct (Pillow path), measured by tests/models/phi3_vision/test_image_processing.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from ray_job.errors import ErrorCode, RowError

_WHITE = (255, 255, 255)


@dataclass(frozen=True)
class HDSize:
    """Sizes in pixels, in the picture's own orientation. `padded_*` are multiples of `crop_size`."""

    resized_width: int
    resized_height: int
    padded_width: int
    padded_height: int
    is_transposed: bool
    crop_size: int = 336

    @property
    def rows(self) -> int:
        """Crops from top to bottom."""
        return self.padded_height // self.crop_size

    @property
    def cols(self) -> int:
        """Crops from left to right."""
        return self.padded_width // self.crop_size


def hd_size(width: float, height: float, num_crops: int, crop_size: int = 336) -> HDSize:
    """The HD size of a `width` × `height` picture cut into at most `num_crops` crops.

    In float64 like the official code: exact integers give other sizes for some pictures. A picture wider
    than tall is scaled to the most crops across that fit; a taller one is turned first and back afterwards.
    Raises RowError IMAGE_TOO_NARROW where the shorter side rounds to 0, ValueError for sizes below 1.
    """
    if min(width, height, num_crops, crop_size) < 1:
        raise ValueError(f"sizes must be at least 1, got {width}×{height}, {num_crops=}, {crop_size=}")
    is_transposed = width < height
    ratio = height / width if is_transposed else width / height
    crops_across = 1
    while (crops_across + 1) * math.ceil((crops_across + 1) / ratio) <= num_crops:
        crops_across += 1
    long_side = crops_across * crop_size
    short_side = int(long_side / ratio)
    if short_side == 0:
        raise RowError(
            ErrorCode.IMAGE_TOO_NARROW,
            f"the picture is {width:g} × {height:g} large: its short side would be resized to 0 at "
            f"num_crops={num_crops}; crop the picture or raise num_crops",
        )
    padded = math.ceil(short_side / crop_size) * crop_size
    if is_transposed:
        return HDSize(short_side, long_side, padded, long_side, True, crop_size)
    return HDSize(long_side, short_side, long_side, padded, False, crop_size)


def num_image_tokens(rows: int, cols: int, side: int = 12) -> int:
    """Tokens a picture of `rows` × `cols` crops takes in the prompt, with its separators.

    `side` is the tokens along one side of a crop. Every crop and the global view give side² tokens, every
    grid row of tokens ends with a newline token, and one separator stands between the two.
    """
    return (rows * cols + 1) * side * side + 1 + (rows + 1) * side


def max_image_tokens(num_crops: int, side: int = 12) -> int:
    """The most tokens a picture takes that is cut into at most `num_crops` crops: a tall one in most cases."""
    return max(num_image_tokens(rows, num_crops // rows, side) for rows in range(1, num_crops + 1))


def hd_transform(image: Image.Image, num_crops: int, crop_size: int = 336) -> npt.NDArray[np.uint8]:
    """Resizes (bilinear) and pads with white to whole crops. Returns (H, W, 3) uint8, contiguous.

    Like the official code it drops an alpha channel without compositing and ignores EXIF orientation.
    Raises RowError IMAGE_TOO_NARROW (see `hd_size`).
    """
    size = hd_size(image.width, image.height, num_crops, crop_size)
    picture = image.convert("RGB")
    resized, padded = (size.resized_width, size.resized_height), (size.padded_width, size.padded_height)
    if size.is_transposed:
        # Pillow resizes the two axes one after the other and rounds between: the order matters for the bits.
        picture = picture.transpose(Image.Transpose.TRANSPOSE)
        resized, padded = resized[::-1], padded[::-1]
    picture = picture.resize(resized, Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", padded, _WHITE)
    canvas.paste(picture, (0, (padded[1] - resized[1]) // 2))
    if size.is_transposed:
        canvas = canvas.transpose(Image.Transpose.TRANSPOSE)
    return np.array(canvas)
