"""Pictures cut short: refused or accepted as the spec says, and `plan` says of each what `run` will."""

from __future__ import annotations

import random
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.pictures.decode import decode, picture_size
from ray_job.inputs.pictures.rules import PictureRules
from ray_job.spec import LimitsSpec

from .conftest import encoded, noise
from .test_as_shown import png_chunk
from .test_pictures import GOOD

LIMITS = LimitsSpec()
STRICT, ACCEPT = PictureRules(), PictureRules(accept_truncated=True)


def outcome(read: object, data: bytes, rules: PictureRules) -> object:
    """The size, or the code of the error."""
    try:
        result = read(data, LIMITS, rules)  # type: ignore[operator]
    except RowError as error:
        return error.code
    return result.size if isinstance(result, Image.Image) else result


@pytest.mark.parametrize("rules", [STRICT, ACCEPT, PictureRules(are_as_shown=False)])
@pytest.mark.parametrize("name", GOOD)
def test_plan_and_run_agree_on_every_cut(name: str, rules: PictureRules) -> None:
    data = GOOD[name]
    dice = random.Random(name)
    cuts = [1, 2, 3, 4, 8, 12, 13, 17, 60, *(dice.randrange(1, len(data) - 1) for _ in range(6))]
    for num_bytes in cuts:
        cut = data[:-num_bytes]
        assert outcome(picture_size, cut, rules) == outcome(decode, cut, rules), f"{num_bytes} bytes are missing"
    for more in (b"\0" * 5000, b"trailer of a phone"):
        assert outcome(picture_size, data + more, rules) == outcome(decode, data + more, rules)


def accepted(data: bytes) -> npt.NDArray[np.uint8]:
    """The picture that is an error unless it is accepted."""
    assert outcome(decode, data, STRICT) == outcome(picture_size, data, STRICT) == ErrorCode.IMAGE_TRUNCATED
    image = decode(data, LIMITS, ACCEPT)
    assert image.size == picture_size(data, LIMITS, ACCEPT)
    return np.asarray(image)


@pytest.mark.parametrize("is_progressive", [False, True])
@pytest.mark.parametrize("num_bytes", [1, 2, 3, 10, 300])
def test_a_jpeg_without_its_last_bytes(is_progressive: bool, num_bytes: int) -> None:
    data = encoded(noise(), "JPEG", quality=95, progressive=is_progressive)
    whole = np.asarray(decode(data, LIMITS))
    ours = accepted(data[:-num_bytes])
    if num_bytes <= 2:
        np.testing.assert_array_equal(ours, whole)
    if not is_progressive:
        np.testing.assert_array_equal(ours[:32], whole[:32])


@pytest.mark.parametrize("num_bytes", [4, 6, 20, 100, 160])
def test_a_jpeg_that_ends_within_its_header(num_bytes: int) -> None:
    data = encoded(noise(), "JPEG")[:num_bytes]
    for rules in (STRICT, ACCEPT):
        assert outcome(decode, data, rules) == outcome(picture_size, data, rules) == ErrorCode.IMAGE_TRUNCATED


@pytest.mark.parametrize("frame", [0xC3, 0xC5, 0xC9, 0xCB, 0xF7])
def test_plan_and_run_agree_on_a_jpeg_of_another_coding(frame: int) -> None:
    data = encoded(noise(), "JPEG").replace(b"\xff\xc0\0", bytes([0xFF, frame, 0]))
    assert outcome(picture_size, data, STRICT) == outcome(decode, data, STRICT)


PNGS = {
    "rgb": encoded(noise()),
    "grey": encoded(noise().convert("L")),
    "palette": encoded(noise().quantize(200)),
    "two colours of a palette": encoded(noise().quantize(2), bits=1),
    "bilevel": encoded(noise().convert("1")),
    "alpha": encoded(noise().convert("RGBA")),
    "16 bits": encoded(Image.fromarray(np.asarray(noise())[..., 0].astype(np.uint16) * 257)),
    "animated": encoded(noise(), save_all=True, append_images=[noise(seed=1)]),
}


@pytest.mark.parametrize("name", PNGS)
def test_a_png_without_its_last_rows(name: str) -> None:
    data = PNGS[name]
    end = data.index(b"fcTL", data.index(b"IDAT")) - 4 if name == "animated" else len(data) - 12
    start = data.index(b"IDAT") + 4
    whole = np.asarray(decode(data, LIMITS))
    ours = accepted(data[: start + int((end - start) * 0.8)])
    np.testing.assert_array_equal(ours[:40], whole[:40])
    assert not np.array_equal(ours, whole)


def test_a_png_whose_rows_are_interlaced() -> None:
    whole = np.array([[(x * 30 + y) % 256 for x in range(8)] for y in range(8)], np.uint8)
    passes = [whole[0::8, 0::8], whole[0::8, 4::8], whole[4::8, 0::4], whole[0::4, 2::4]]
    passes += [whole[2::4, 0::2], whole[0::2, 1::2], whole[1::2, 0::1]]
    rows = b"".join(b"\0" + row.tobytes() for part in passes for row in part)

    packed = zlib.compress(rows, 0)
    head = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1))
    data = head + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")
    np.testing.assert_array_equal(np.asarray(decode(data, LIMITS))[..., 0], whole)
    ours = accepted(data[: -12 - 4 - 20])
    np.testing.assert_array_equal(ours[::2, :, 0], whole[::2])
    assert (ours[7, :, 0] == 0).all()


def gif_of(image: Image.Image, **options: object) -> bytes:
    return encoded(image.quantize(200), "GIF", **options)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("options", [{}, {"transparency": 5}, {"comment": b"x" * 600}], ids=str)
def test_a_gif_without_its_last_rows(share: float, options: dict[str, object]) -> None:
    data = gif_of(noise(), **options, interlace=0)
    whole = np.asarray(decode(data, LIMITS))
    start = data.index(b"\0\0\0\0\x50\0\x3c\0") + 10
    cut = data[: start + int((len(data) - start) * share)]
    ours = accepted(cut)
    num_rows = int(60 * share) - 3
    np.testing.assert_array_equal(ours[:num_rows], whole[:num_rows])
    assert len(np.unique(ours[-2:].reshape(-1, 3), axis=0)) == 1


def test_a_gif_that_ends_before_its_pixels_stays_an_error() -> None:
    data = gif_of(noise())
    for length in range(6, len(data) - 5000, 97):
        assert isinstance(outcome(decode, data[:length], ACCEPT), ErrorCode | tuple)
    assert outcome(decode, data[:300], ACCEPT) == ErrorCode.IMAGE_TRUNCATED


@pytest.mark.parametrize("kind", ["BMP", "PPM", "TIFF", "WEBP"])
def test_other_pictures_without_their_last_third(kind: str) -> None:
    data = encoded(noise(), kind)
    whole = np.asarray(decode(data, LIMITS))
    ours = accepted(data[: len(data) * 2 // 3])
    kept = ours[-32:] if kind == "BMP" else ours[:24]  # which begins with its last row
    expected = whole[-32:] if kind == "BMP" else whole[:24]
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("kind", ["BMP", "PPM", "PNG", "TIFF"])
def test_a_picture_of_which_little_is_there_stays_an_error(kind: str) -> None:
    data = encoded(noise(), kind)
    assert outcome(decode, data[: len(data) // 3], ACCEPT) == ErrorCode.IMAGE_TRUNCATED
    assert outcome(picture_size, data[: len(data) // 3], ACCEPT) == ErrorCode.IMAGE_TRUNCATED


def test_a_jpeg_that_ends_before_its_pixels_stays_an_error() -> None:
    data = encoded(noise(), "JPEG")
    scan = data.index(b"\xff\xda")
    for cut in (data[:20], data[:scan], data[: scan + 14]):
        assert outcome(decode, cut, ACCEPT) in (ErrorCode.IMAGE_TRUNCATED, ErrorCode.IMAGE_UNREADABLE)


def test_the_end_of_a_preview_is_not_the_end_of_the_picture() -> None:
    preview = encoded(noise(16, 12), "JPEG")
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + preview
    data = encoded(noise(), "JPEG", exif=exif)
    assert outcome(picture_size, data, STRICT) == (80, 60)
    assert outcome(picture_size, data[:-50], STRICT) == ErrorCode.IMAGE_TRUNCATED


def test_what_is_damaged_in_another_way_is_not_accepted() -> None:
    for data in (b"<html></html>", b"\x89PNG", b"", encoded(noise())[:60] + bytes(50)):
        assert isinstance(outcome(decode, data, ACCEPT), ErrorCode)


def test_accepting_is_no_business_of_others() -> None:
    cuts = [encoded(noise(seed=seed), kind)[:-400] for seed in range(20) for kind in ("JPEG", "PNG")]
    with ThreadPoolExecutor(8) as pool:
        lenient = [pool.submit(outcome, decode, data, ACCEPT) for data in cuts]
        strict = [pool.submit(outcome, decode, data, STRICT) for data in cuts]
    assert {future.result() for future in lenient} == {(80, 60)}
    assert {future.result() for future in strict} == {ErrorCode.IMAGE_TRUNCATED}
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert PngImagePlugin.MAX_TEXT_CHUNK == 2**20
