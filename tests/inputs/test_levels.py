"""Grey of more than 8 bits keeps its levels: expected pixels are computed here from the range that was drawn."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ray_job.inputs.pictures.decode import decode
from ray_job.inputs.pictures.rules import PictureRules
from ray_job.spec import LimitsSpec
from tests.memory import forget_peak, now_mib, peak_mib

from .conftest import encoded

LIMITS = LimitsSpec()


def grey(data: bytes) -> npt.NDArray[np.uint8]:
    """The one channel of what the model sees."""
    pixels = np.asarray(decode(data, LIMITS))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def file_of(levels: npt.NDArray[Any], kind: str = "TIFF", **options: Any) -> bytes:
    return encoded(Image.fromarray(levels), kind, **options)


def scaled(levels: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.float64]:
    return (levels.astype(np.float64) - low) / (high - low) * 255


RAMP = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (3, 1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bits_are_scaled_to_8(kind: str) -> None:
    ours = grey(file_of(RAMP, kind))
    np.testing.assert_allclose(ours, scaled(RAMP, 0, 65535), rtol=0, atol=0.51)
    assert len(np.unique(ours)) == 64


def test_16_bits_of_either_byte_order() -> None:
    big = Image.frombytes("I;16B", (64, 3), RAMP.astype(">u2").tobytes())
    np.testing.assert_allclose(grey(encoded(big, "TIFF")), scaled(RAMP, 0, 65535), rtol=0, atol=0.51)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_empty_upper_bits_are_no_range(kind: str, bits: int) -> None:
    levels = np.linspace(0, 2**bits - 1, 64).astype(np.uint16)[None]
    np.testing.assert_allclose(grey(file_of(levels, kind)), scaled(levels, 0, 2**bits - 1), rtol=0, atol=0.51)


def test_a_declared_range_stays_however_dark_the_picture_is() -> None:
    dark = np.full((4, 4), 2570, np.uint16)
    assert (grey(file_of(dark, "PPM")) == 10).all()
    assert (grey(file_of(dark, "JPEG2000")) == 10).all()
    few = b"P5 2 1 1000\n" + struct.pack(">HH", 1000, 500)
    assert grey(few).tolist() == [[255, 128]]


@pytest.mark.parametrize("span", [(0, 65535), (-1000, 1000), (5, 9), (-(2**31), 2**31 - 1)])
def test_32_bits_are_scaled_to_their_range(span: tuple[int, int]) -> None:
    levels = np.linspace(*span, 64).astype(np.int64).clip(*span).astype(np.int32)[None]
    np.testing.assert_allclose(grey(file_of(levels)), scaled(levels, *span), rtol=0, atol=0.51)


def test_32_bits_without_a_sign() -> None:
    levels = np.linspace(0, 2**32 - 1, 64).astype(np.uint32)[None]
    data = file_of(levels.view(np.int32))
    signed, unsigned = struct.pack("<HHIH", 339, 3, 1, 2), struct.pack("<HHIH", 339, 3, 1, 1)  # SampleFormat
    assert signed in data
    np.testing.assert_allclose(grey(data.replace(signed, unsigned)), scaled(levels, 0, 2**32 - 1), rtol=0, atol=0.51)


@pytest.mark.parametrize(
    ("span", "expected"),
    [((0, 1), (0, 255)), ((0, 0.5), (0, 127.5)), ((-1, 1), (0, 255)), ((0.5, 10), (0, 255)), ((0, 3e38), (0, 255))],
)
def test_floats_are_scaled_to_their_range(span: tuple[float, float], expected: tuple[float, float]) -> None:
    levels = np.linspace(*span, 64).astype(np.float32)[None]
    np.testing.assert_allclose(grey(file_of(levels))[0], np.linspace(*expected, 64), rtol=0, atol=0.51)


@pytest.mark.parametrize("order", ["<", ">"])
def test_pfm_stands_on_its_head(order: str) -> None:
    rows = np.array([[0.0, 0.2], [0.4, 1.0]], order + "f4")
    data = f"Pf 2 2 {-1.0 if order == '<' else 1.0}\n".encode() + rows[::-1].tobytes()
    np.testing.assert_allclose(grey(data), scaled(rows, 0, 1), rtol=0, atol=0.51)


def test_what_is_no_number_is_black_and_the_infinite_at_its_end() -> None:
    levels = np.array([[np.nan, -np.inf, np.inf, -10, 10, 0]], np.float32)
    assert grey(file_of(levels)).tolist() == [[0, 0, 255, 0, 255, 128]]
    assert grey(file_of(np.full((1, 2), np.nan, np.float32))).tolist() == [[0, 0]]
    assert grey(file_of(np.array([[np.inf, -np.inf]], np.float32))).tolist() == [[255, 0]]


@pytest.mark.parametrize(
    ("level", "kind", "expected"),
    [
        (0, np.uint16, 0),
        (65535, np.uint16, 255),
        (200, np.uint16, 200),
        (0, np.int32, 0),
        (77, np.int32, 77),
        (-5, np.int32, 0),
        (70000, np.int32, 255),
        (0.0, np.float32, 0),
        (0.5, np.float32, 128),
        (1.0, np.float32, 255),
        (99.0, np.float32, 99),
    ],
)
def test_one_level_everywhere(level: float, kind: Any, expected: int) -> None:
    assert np.unique(grey(file_of(np.full((2, 2), level, kind)))).tolist() == [expected]


@pytest.mark.parametrize("levels", [RAMP, (RAMP / 65535).astype(np.float32)])
def test_where_zero_is_white(levels: npt.NDArray[Any]) -> None:
    data = file_of(levels)
    black, white = struct.pack("<HHIH", 262, 3, 1, 1), struct.pack("<HHIH", 262, 3, 1, 0)  # PhotometricInterpretation
    assert black in data
    np.testing.assert_allclose(grey(data.replace(black, white)), 255 - scaled(RAMP, 0, 65535), rtol=0, atol=0.51)


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=30), st.sampled_from(["PNG", "TIFF"]))
def test_order_of_levels_is_kept(levels: list[int], kind: str) -> None:
    ours = grey(file_of(np.array([levels], np.uint16), kind))[0].astype(int)
    order = np.argsort(levels)
    assert (np.diff(ours[order]) >= 0).all()
    assert ours[order[-1]] >= (64 if max(levels) > 255 else max(levels))


def test_as_stored_they_are_cut_off_as_pillow_does() -> None:
    data = file_of(RAMP)
    ours = decode(data, LIMITS, PictureRules(are_as_shown=False))
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(Image.open(BytesIO(data)).convert("RGB")))


def test_a_large_picture_takes_little_more_than_itself() -> None:
    levels = np.zeros((6000, 4000), np.float32)
    levels[::2] = 1000
    data = file_of(levels)
    del levels
    forget_peak()
    before = now_mib()
    image = decode(data, LIMITS)
    assert image.getpixel((0, 0)) == (255, 255, 255)
    # The floats themselves and RGB are 92 MiB each, grey is 23.
    assert peak_mib() - before < 300
