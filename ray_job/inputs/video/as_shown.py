"""A decoded frame as a viewer shows it: in RGB by its own colour matrix and range, with square pixels, upright."""

from __future__ import annotations

import struct
from fractions import Fraction

from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from PIL import Image

_UNSPECIFIED = (2, 3)  # of AVColorSpace, and its reserved value
_HD_WIDTH, _SD_HEIGHT = 1280, 576  # from there on players take what does not say it for BT.709
_MOST_STRETCHED = 8  # what says more is damaged
# Colours are interpolated between their samples, and the same on every machine.
_FLAGS = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT


class Viewer:
    """Shows the frames of one stream.

    Args:
        aspect: a pixel's width by its height.
    """

    def __init__(self, aspect: Fraction | None) -> None:
        is_possible = aspect is not None and aspect > 0 and 1 / _MOST_STRETCHED <= aspect <= _MOST_STRETCHED
        self._aspect = aspect if is_possible and aspect is not None else Fraction(1)
        # By what a frame says of its rotation: to look at all it says ties its memory up until Python collects it.
        self._turns: dict[int, list[Image.Transpose]] = {}

    def rgb(self, frame: VideoFrame) -> bytes:
        """The frame's picture, height × width × 3; `size` says how large."""
        width, height = self._square(frame)
        is_hd = frame.width >= _HD_WIDTH or frame.height > _SD_HEIGHT
        matrix = (Colorspace.ITU709 if is_hd else Colorspace.ITU601) if frame.colorspace in _UNSPECIFIED else None
        shown = frame.reformat(
            width,
            height,
            "rgb24",
            src_colorspace=matrix,
            dst_color_range=ColorRange.JPEG,
            interpolation=_FLAGS,
            threads=1,
        )
        plane, turns = shown.planes[0], self._turns_of(frame)
        if not turns and plane.line_size == 3 * width:
            return bytes(plane)
        image = Image.frombytes("RGB", (width, height), bytes(plane), "raw", "RGB", plane.line_size, 1)
        for turn in turns:
            image = image.transpose(turn)
        return image.tobytes()

    def size(self, frame: VideoFrame) -> tuple[int, int]:
        """Width and height of that picture."""
        width, height = self._square(frame)
        return (height, width) if Image.Transpose.TRANSPOSE in self._turns_of(frame) else (width, height)

    def _square(self, frame: VideoFrame) -> tuple[int, int]:
        """Width and height with square pixels: the longer side of a pixel is stretched, nothing is thrown away."""
        if self._aspect > 1:
            return round(frame.width * self._aspect), frame.height
        return frame.width, round(frame.height / self._aspect)

    def _turns_of(self, frame: VideoFrame) -> list[Image.Transpose]:
        if frame.rotation not in self._turns:
            self._turns[frame.rotation] = _turns(frame)
        return self._turns[frame.rotation]


def _turns(frame: VideoFrame) -> list[Image.Transpose]:
    """What the display matrix asks for, in steps of 90 degrees."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return []
    assert isinstance(data, SideData)
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data))
    is_turned = abs(a) + abs(d) < abs(b) + abs(c)
    x, y = (c, b) if is_turned else (a, d)
    steps = [
        (is_turned, Image.Transpose.TRANSPOSE),
        (x < 0, Image.Transpose.FLIP_LEFT_RIGHT),
        (y < 0, Image.Transpose.FLIP_TOP_BOTTOM),
    ]
    return [step for is_needed, step in steps if is_needed]
