"""Pictures: every format, every way to be broken, and nothing but RowError ever."""

from __future__ import annotations

import random
import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.pictures.decode import decode, picture_size, pictures_of
from ray_job.inputs.pictures.rules import PictureRules
from ray_job.spec import LimitsSpec

from .conftest import encoded, noise

LIMITS = LimitsSpec()
AS_STORED = PictureRules(are_as_shown=False)


def _grey16() -> Image.Image:
    return Image.fromarray(np.asarray(noise())[..., 0].astype(np.uint16) * 257)


def _rotated_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


PALETTE = noise().convert("P", palette=Image.Palette.ADAPTIVE)
GOOD = {
    "jpeg": encoded(noise(), "JPEG"),
    "jpeg progressive": encoded(noise(), "JPEG", progressive=True),
    "jpeg cmyk": encoded(noise().convert("CMYK"), "JPEG"),
    "jpeg grey": encoded(noise().convert("L"), "JPEG"),
    "jpeg rotated by exif": encoded(noise(), "JPEG", exif=_rotated_exif()),
    "png": encoded(noise()),
    "png palette": encoded(PALETTE),
    "png palette, alpha for each colour": encoded(PALETTE, transparency=bytes(range(256))),
    "png palette, one clear colour": encoded(PALETTE, transparency=3),
    "png rgb, one clear colour": encoded(noise(), transparency=(1, 2, 3)),
    "png 16 bit": encoded(_grey16()),
    "png bilevel": encoded(noise().convert("1")),
    "png la": encoded(noise().convert("LA")),
    "png rgba": encoded(noise().convert("RGBA")),
    "apng": encoded(noise(), save_all=True, append_images=[noise(seed=1)]),
    "apng with a still": encoded(noise(), save_all=True, append_images=[noise(seed=1)], default_image=True),
    "webp": encoded(noise(), "WEBP"),
    "webp lossless rgba": encoded(noise().convert("RGBA"), "WEBP", lossless=True),
    "webp animated": encoded(noise(), "WEBP", save_all=True, append_images=[noise(seed=1)]),
    "gif": encoded(noise(), "GIF"),
    "gif animated": encoded(noise(), "GIF", save_all=True, append_images=[noise(seed=1)]),
    "bmp": encoded(noise(), "BMP"),
    "tiff": encoded(noise(), "TIFF"),
    "tiff lzw": encoded(noise(), "TIFF", compression="tiff_lzw"),
    "tiff deflate": encoded(noise(), "TIFF", compression="tiff_adobe_deflate"),
    "tiff fax": encoded(noise().convert("1"), "TIFF", compression="group4"),
    "tiff jpeg": encoded(noise(), "TIFF", compression="jpeg"),
    "tiff rotated by exif": encoded(noise(), "TIFF", exif=_rotated_exif()),
    "avif": encoded(noise(), "AVIF"),
    "jpeg 2000": encoded(noise(), "JPEG2000"),
    "ppm": encoded(noise(), "PPM"),
    "pgm": encoded(noise().convert("L"), "PPM"),
    "pgm 16 bit": encoded(_grey16(), "PPM"),
    "pbm": encoded(noise().convert("1"), "PPM"),
    "pfm": encoded(Image.fromarray(np.asarray(noise().convert("L")).astype(np.float32) / 255), "PPM"),
    "ico": encoded(noise(48, 48), "ICO"),
    "mpo": encoded(noise(), "MPO", save_all=True, append_images=[noise(seed=1)]),
}


def _code(data: bytes, limits: LimitsSpec = LIMITS) -> ErrorCode:
    with pytest.raises(RowError) as caught:
        decode(data, limits)
    return caught.value.code


@pytest.mark.parametrize("name", GOOD)
def test_a_good_picture_as_stored_is_what_pillow_converts_to_rgb(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        official = Image.open(BytesIO(GOOD[name])).convert("RGB")
    ours = decode(GOOD[name], LIMITS, AS_STORED)
    assert ours.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(official))
    assert picture_size(GOOD[name], rules=AS_STORED) == picture_size(GOOD[name], LIMITS, AS_STORED) == ours.size


CUTS = [(name, share) for name in GOOD for share in (0.3, 0.6)]
for _name in ("gif animated", "mpo", "apng"):
    CUTS.remove((_name, 0.6))  # the first frame, the only one read, is whole


@pytest.mark.parametrize(("name", "share"), CUTS)
def test_a_picture_cut_short_says_so(name: str, share: float) -> None:
    data = GOOD[name]
    assert _code(data[: int(len(data) * share)]) == ErrorCode.IMAGE_TRUNCATED


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"])
@pytest.mark.parametrize("num_bytes", [1, 12, 60, 200])
def test_a_tiff_without_its_last_bytes_says_so(compression: str, num_bytes: int) -> None:
    """They are those of its directory, or of the values behind it, without which it looks like one of odd pixels."""
    data = encoded(noise(), "TIFF", compression=compression)
    assert _code(data[:-num_bytes]) == ErrorCode.IMAGE_TRUNCATED


def test_zero_bytes_and_text_are_no_pictures() -> None:
    assert _code(b"") == ErrorCode.IMAGE_EMPTY
    assert _code(b"<html>404 Not Found</html>") == ErrorCode.IMAGE_UNREADABLE
    assert _code(b"\x89PNG") == ErrorCode.IMAGE_UNREADABLE
    assert _code(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == ErrorCode.IMAGE_UNREADABLE


def _bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that promises many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [9_500, 60_000])  # where Pillow would warn, and where it would raise
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    assert _code(_bomb(side, side)) == ErrorCode.IMAGE_TOO_LARGE
    with pytest.raises(RowError, match="max_pixels"):
        picture_size(_bomb(side, side), LIMITS)
    assert picture_size(_bomb(side, side)) == (side, side)


def test_the_limit_of_pixels_is_the_specs_alone() -> None:
    assert decode(GOOD["png"], LimitsSpec(max_pixels=80 * 60)).size == (80, 60)
    assert _code(GOOD["png"], LimitsSpec(max_pixels=80 * 60 - 1)) == ErrorCode.IMAGE_TOO_LARGE
    # A limit above Pillow's own: the header passes, the missing pixels are what is wrong.
    assert _code(_bomb(14_000, 14_000), LimitsSpec(max_pixels=10**9)) == ErrorCode.IMAGE_TRUNCATED
    assert Image.MAX_IMAGE_PIXELS == 89_478_485


RULES = [
    PictureRules(are_as_shown, accept_truncated=accept) for are_as_shown in (True, False) for accept in (True, False)
]


def test_damaged_pictures_decode_or_raise_row_errors() -> None:
    dice = random.Random(7)
    outcomes = set()
    for data in GOOD.values():
        for _ in range(30):
            damaged = bytearray(data)
            for _ in range(dice.choice((1, 3, 20))):
                # Headers are where decoders trip.
                place = dice.randrange(min(len(data), dice.choice((64, 600, len(data)))))
                damaged[place] = dice.randrange(256)
            cut = dice.choice((len(data), len(data), dice.randrange(len(data))))
            try:
                decode(bytes(damaged[:cut]), LIMITS, dice.choice(RULES))
                outcomes.add("ok")
            except RowError as error:
                outcomes.add(error.code.value)
    assert {"ok", "image_truncated", "image_unreadable"} <= outcomes


def test_pictures_of_a_row_in_order() -> None:
    row = {"images": ["a", None, "b"], "image": "c", "more": None, "none": []}
    assert pictures_of(row, ("images",)) == ["a", None, "b"]
    assert pictures_of(row, ("image", "images")) == ["c", "a", None, "b"]
    assert pictures_of(row, ("image", "more")) == ["c"], "a null beside a picture is not used"
    assert pictures_of(row, ("more",)) == [None], "a null alone is a missing picture"
    assert pictures_of(row, ("more", "none")) == [None]
    assert pictures_of(row, ("none",)) == []
    assert pictures_of(row, ()) == []
