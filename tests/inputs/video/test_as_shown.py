"""Frames as a viewer shows them: upright, with square pixels, in their own colours."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("av")

from ray_job.inputs.video.process import VideoProcess
from ray_job.spec import LimitsSpec, VideoSpec

from .files import SIZE, painted, steady, video

pytestmark = pytest.mark.data
COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (230, 230, 20)]  # of the quarters, row by row


@pytest.fixture(scope="module")
def process() -> Iterator[VideoProcess]:
    one = VideoProcess()
    yield one
    one.close()


def first(process: VideoProcess, data: bytes) -> np.ndarray:
    """The first frame, height × width × 3; its size is what a look at it says."""
    with process.video(pa.BufferReader(data), VideoSpec(), LimitsSpec()) as opened:
        look, frame = opened.look(0), opened.frame(0)
    assert (look.width, look.height) == (frame.width, frame.height)
    return np.frombuffer(frame.rgb, np.uint8).reshape(frame.height, frame.width, 3)


def quarters(size: tuple[int, int] = SIZE) -> np.ndarray:
    width, height = size
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2], picture[: height // 2, width // 2 :] = COLOURS[:2]
    picture[height // 2 :, : width // 2], picture[height // 2 :, width // 2 :] = COLOURS[2:]
    return picture


def colours_of(picture: np.ndarray) -> list[tuple[int, ...]]:
    """In the middles of the quarters, row by row."""
    height, width, _ = picture.shape
    return [tuple(map(int, picture[height * y // 4, width * x // 4])) for y in (1, 3) for x in (1, 3)]


def is_near(found: list[tuple[int, ...]], expected: list[tuple[int, ...]], within: int = 5) -> bool:
    return bool(np.abs(np.array(found) - np.array(expected)).max() <= within)


@pytest.mark.parametrize(
    ("degrees", "order"), [(None, [0, 1, 2, 3]), (90, [1, 3, 0, 2]), (-90, [2, 0, 3, 1]), (180, [3, 2, 1, 0])]
)
def test_a_rotation_that_players_apply_is_applied(process: VideoProcess, degrees: int | None, order: list[int]) -> None:
    """90: a quarter turn counterclockwise, so that what was on the right is above."""
    shown = first(process, video(steady(2), pictures=[quarters()] * 2, rotation=degrees))
    assert shown.shape[:2] == ((SIZE[0], SIZE[1]) if degrees in (90, -90) else (SIZE[1], SIZE[0]))
    assert is_near(colours_of(shown), [COLOURS[index] for index in order])


@pytest.mark.parametrize(("aspect", "size"), [(Fraction(3, 2), (192, 96)), (Fraction(1, 2), (128, 192))])
def test_pixels_become_square(process: VideoProcess, aspect: Fraction, size: tuple[int, int]) -> None:
    shown = first(process, video(steady(2), pictures=[quarters()] * 2, sample_aspect_ratio=aspect))
    assert shown.shape[1::-1] == size
    assert is_near(colours_of(shown), COLOURS)


FORMATS = {
    "eight bits": {},
    "4:4:4": {"pix_fmt": "yuv444p"},
    "ten bits": {"pix_fmt": "yuv420p10le"},
    "4:2:2 in ten bits": {"pix_fmt": "yuv422p10le"},
    "grey": {"pix_fmt": "gray", "color_range": 2},
    "full range": {"pix_fmt": "yuvj420p"},
    "VP9 in RGB": {"codec": "libvpx-vp9", "format": "webm", "pix_fmt": "gbrp", "options": {"lossless": "1"}},
}


@pytest.mark.parametrize("kind", FORMATS)
def test_colours_are_those_that_were_recorded(process: VideoProcess, kind: str) -> None:
    shown = first(process, video(steady(2), pictures=[quarters()] * 2, **FORMATS[kind]))
    grey = [(round(0.299 * r + 0.587 * g + 0.114 * b),) * 3 for r, g, b in COLOURS]
    assert is_near(colours_of(shown), grey if kind == "grey" else COLOURS)


@pytest.mark.parametrize(
    ("size", "matrix", "colorspace"),
    [
        ((128, 96), "smpte170m", None),
        ((1280, 720), "bt709", None),
        ((128, 96), "bt709", 1),
        ((1280, 720), "smpte170m", 6),
    ],
)
def test_the_colour_matrix_is_the_files_or_what_players_assume(
    process: VideoProcess, size: tuple[int, int], matrix: str, colorspace: int | None
) -> None:
    """Standard definition is BT.601 where a file does not say it, high definition BT.709."""
    data = coded(quarters(size), matrix, {} if colorspace is None else {"colorspace": colorspace})
    assert is_near(colours_of(first(process, data)), COLOURS)


def coded(picture: np.ndarray, matrix: str, tags: dict[str, int]) -> bytes:
    """Two frames of a picture, its colours converted by a matrix that only `tags` tell of."""
    weights = {"smpte170m": (0.299, 0.114), "bt709": (0.2126, 0.0722)}
    red, blue = weights[matrix]
    r, g, b = np.moveaxis(picture.astype(float), 2, 0)
    luma = red * r + (1 - red - blue) * g + blue * b
    planes = [
        16 + luma * 219 / 255,
        128 + (b - luma) / (1 - blue) * 112 / 255,
        128 + (r - luma) / (1 - red) * 112 / 255,
    ]
    pixels = np.stack([plane.round().astype(np.uint8) for plane in planes])  # 3 × height × width
    return video(
        steady(2), pictures=[pixels] * 2, size=picture.shape[1::-1], pix_fmt="yuv444p", picture_format="yuv444p", **tags
    )


def test_a_frame_of_the_same_pixels_has_the_same_bytes_every_time(process: VideoProcess) -> None:
    data = video(steady(50), pictures=[painted(3)] * 50, options={"qp": "0"})
    with process.video(pa.BufferReader(data), VideoSpec(), LimitsSpec()) as opened:
        seen = {opened.frame(time_us).rgb for time_us in (0, 1_900_000, 400_000, 1_000_000)}
    assert len(seen) == 1


def test_interlaced_frames_are_known(process: VideoProcess) -> None:
    options = {"x264-params": "tff=1:interlaced=1"}
    data = video(steady(4), options=options, size=(128, 96))
    for content, is_interlaced in ((data, True), (video(steady(4)), False)):
        with process.video(pa.BufferReader(content), VideoSpec(), LimitsSpec()) as opened:
            assert opened.look(0).is_interlaced == is_interlaced
