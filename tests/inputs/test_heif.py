"""HEIF pictures through pillow-heif, as phones make them."""

from __future__ import annotations

import random
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.pictures.decode import decode, picture_size
from ray_job.inputs.pictures.rules import PictureRules
from ray_job.inputs.pictures.signatures import picture_format
from ray_job.spec import LimitsSpec

from .test_as_shown import UPRIGHT, assert_close, shown, swapped_profile, with_orientation

pytestmark = pytest.mark.data
pillow_heif = pytest.importorskip("pillow_heif")
LIMITS = LimitsSpec()

QUARTERS = (
    np.array([[[250, 10, 10], [10, 250, 10]], [[10, 10, 250], [240, 240, 240]]], dtype=np.uint8)
    .repeat(32, axis=0)
    .repeat(48, axis=1)
)


def heic(image: Image.Image, **options: object) -> bytes:
    """The picture as a phone's file, its pixels as they are; `exif` becomes the file's own turn."""
    file, buffer = pillow_heif.HeifFile(), BytesIO()
    file.add_frombytes(image.mode, image.size, image.tobytes())
    file.save(buffer, quality=-1, chroma=444, **options)
    return buffer.getvalue()


def test_heic_is_read_and_pillow_does_not_learn_of_it() -> None:
    data = heic(Image.fromarray(QUARTERS))
    assert picture_format(data[:32]) == "HEIC"
    assert_close(shown(data)[8::16, 8::16], QUARTERS[8::16, 8::16], within=6)
    assert "HEIF" not in Image.OPEN


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_heic_is_turned_once(orientation: int) -> None:
    data = heic(Image.fromarray(QUARTERS), exif=with_orientation(orientation).tobytes())
    assert (b"irot" in data or b"imir" in data) == (orientation > 1)
    assert_close(shown(data)[8::16, 8::16], UPRIGHT[orientation](QUARTERS)[8::16, 8::16], within=6)


def test_what_is_transparent_in_heic_is_over_the_background() -> None:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((200, 30, 30, 255), (0, 0, 32, 64))
    ours = shown(heic(image))
    assert_close(ours[32, 8], (200, 30, 30), within=6)
    assert_close(ours[32, 56], (255, 255, 255), within=3)


def test_heic_cut_short_is_an_error_in_plan_and_run() -> None:
    data = heic(Image.fromarray(QUARTERS))
    for cut in (data[:-1], data[: len(data) // 2], data[:-40]):
        codes = []
        for read in (decode, picture_size):
            with pytest.raises(RowError) as caught:
                read(cut, LIMITS, PictureRules())
            codes.append(caught.value.code)
        assert codes == [ErrorCode.IMAGE_TRUNCATED] * 2


def test_large_heic_is_refused_by_its_header() -> None:
    with pytest.raises(RowError, match="max_pixels") as caught:
        picture_size(heic(Image.fromarray(QUARTERS)), LimitsSpec(max_pixels=100))
    assert caught.value.code == ErrorCode.IMAGE_TOO_LARGE


def test_damaged_heic_is_decoded_or_an_error_of_its_row() -> None:
    data, dice = heic(Image.fromarray(QUARTERS)), random.Random(5)
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(dice.choice((1, 3, 20))):
            damaged[dice.randrange(dice.choice((64, len(data))))] = dice.randrange(256)
        try:
            decode(bytes(damaged), LimitsSpec(max_pixels=10**6))
            outcomes.add("ok")
        except RowError as error:
            outcomes.add(error.code.value)
    assert {"ok", "image_unreadable"} <= outcomes
    assert "internal" not in outcomes


def test_the_colour_profile_of_a_phone_is_applied() -> None:
    data = heic(Image.fromarray(QUARTERS), icc_profile=swapped_profile(), icc_profile_type="prof")
    assert_close(shown(data)[8::16, 8::16], QUARTERS[8::16, 8::16, ::-1], within=8)
