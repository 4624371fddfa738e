"""What the model sees is what a viewer shows: pixels computed here by hand, beside what `decode` gives."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.pictures.decode import decode, picture_size
from ray_job.inputs.pictures.rules import PictureRules
from ray_job.spec import LimitsSpec

from .conftest import encoded, noise

LIMITS = LimitsSpec()
AS_STORED = PictureRules(are_as_shown=False)
Pixels = npt.NDArray[np.uint8]

# What a picture stored with an orientation must be turned by, on arrays of (height, width, …).
UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a),
}


def shown(data: bytes, **rules: object) -> Pixels:
    """What the model sees, of the size that the header tells."""
    picture_rules = PictureRules(**rules)  # type: ignore[arg-type]
    image = decode(data, LIMITS, picture_rules)
    assert image.mode == "RGB"
    assert picture_size(data, LIMITS, picture_rules) == picture_size(data, None, picture_rules) == image.size
    return np.asarray(image)


def assert_close(ours: Pixels, expected: object, within: int = 1) -> None:
    np.testing.assert_allclose(ours.astype(int), np.asarray(expected, dtype=float), rtol=0, atol=within)


def with_orientation(value: object) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


LOSSLESS: dict[str, dict[str, object]] = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "JPEG": {"quality": 95},
    "AVIF": {"quality": 95},
    "MPO": {"quality": 95},
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_picture_is_turned_upright(kind: str, orientation: int) -> None:
    # Quarters of plain colours survive lossy formats.
    quarters = np.array([[[250, 10, 10], [10, 250, 10]], [[10, 10, 250], [240, 240, 240]]], dtype=np.uint8)
    stored = quarters.repeat(32, axis=0).repeat(48, axis=1)
    data = encoded(Image.fromarray(stored), kind, exif=with_orientation(orientation), **LOSSLESS[kind])
    ours = shown(data)
    assert_close(ours[8::16, 8::16], UPRIGHT[orientation](stored)[8::16, 8::16], within=12)
    if kind != "TIFF":  # which Pillow turns itself
        assert decode(data, LIMITS, AS_STORED).size == picture_size(data, LIMITS, AS_STORED) == (96, 64)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


EXIF = with_orientation(6).tobytes()
RAW_PROFILE = f"\nexif\n{len(EXIF):8}\n{EXIF.hex()}\n".encode()  # ImageMagick's
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("is_late", [True, False])
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"eXIf", EXIF[6:]),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_PROFILE)),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    ],
)
def test_an_orientation_anywhere_in_a_png_counts(kind: bytes, body: bytes, is_late: bool) -> None:
    plain, place = encoded(noise()), -12 if is_late else 33
    data = plain[:place] + png_chunk(kind, body) + plain[place:]
    np.testing.assert_array_equal(shown(data), np.rot90(np.asarray(noise()), -1))


def test_an_orientation_in_xmp_counts() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    data = encoded(noise(), "WEBP", lossless=True, xmp=xmp)
    np.testing.assert_array_equal(shown(data), np.rot90(np.asarray(noise())))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_is_none_is_ignored(value: int) -> None:
    np.testing.assert_array_equal(shown(encoded(noise(), exif=with_orientation(value))), np.asarray(noise()))


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0"])
def test_broken_exif_is_no_damage(exif: bytes) -> None:
    data = encoded(noise(), "JPEG", exif=exif)
    np.testing.assert_array_equal(shown(data), np.asarray(decode(data, LIMITS, AS_STORED)))


def clear_and_solid(rgb: tuple[int, int, int] = (10, 200, 30)) -> tuple[Pixels, npt.NDArray[np.float64]]:
    """Pixels of RGBA with every alpha, and what they are over white."""
    alpha = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    colours = np.empty((4, 256, 4), np.uint8)
    colours[..., :3], colours[..., 3] = rgb, alpha
    share = alpha[..., None] / 255
    return colours, np.array(rgb) * share + 255 * (1 - share)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {}), ("JPEG2000", {"irreversible": False})],
)
def test_what_is_transparent_is_over_the_background(kind: str, options: dict[str, object]) -> None:
    colours, over_white = clear_and_solid()
    data = encoded(Image.fromarray(colours), kind, **options)
    assert_close(shown(data), over_white)
    over_blue = over_white - (255 - colours[..., 3:].astype(float)) / 255 * np.array([255, 255, 0])
    assert_close(shown(data, background=(0, 0, 255)), over_blue)
    np.testing.assert_array_equal(np.asarray(decode(data, LIMITS, AS_STORED)), colours[..., :3])


def test_grey_with_alpha_is_over_the_background() -> None:
    pixels = np.stack([np.full((4, 256), 40, np.uint8), np.tile(np.arange(256, dtype=np.uint8), (4, 1))], -1)
    share = pixels[..., 1:] / 255
    assert_close(shown(encoded(Image.fromarray(pixels))), (40 * share + 255 * (1 - share)).repeat(3, -1))


def test_premultiplied_alpha_of_tiff_is_over_the_background() -> None:
    colours, over_white = clear_and_solid()
    multiplied = colours.copy()
    multiplied[..., :3] = np.rint(colours[..., :3] * (colours[..., 3:] / 255))
    data = encoded(Image.fromarray(multiplied), "TIFF")
    plain, associated = struct.pack("<HHIH", 338, 3, 1, 2), struct.pack("<HHIH", 338, 3, 1, 1)  # ExtraSamples
    assert plain in data
    assert_close(shown(data.replace(plain, associated)), over_white, within=2)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_clear_colours_of_a_palette_are_over_the_background(kind: str) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 0, 200])
    image.putdata([0, 1, 2])
    data = encoded(image, kind, transparency=0)
    assert shown(data).tolist() == [[[255, 255, 255], [200, 0, 0], [0, 0, 200]]]
    if kind == "PNG":
        assert_close(
            shown(encoded(image, kind, transparency=bytes([0, 51, 255])))[0], [[255] * 3, [244, 204, 204], [0, 0, 200]]
        )


def png_of(depth: int, colour: int, rows: list[bytes], width: int, clear: tuple[int, ...] | None) -> bytes:
    """A PNG of any depth, with a transparent grey or colour."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    transparency = b"" if clear is None else png_chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear))
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + transparency
        + png_chunk(b"IDAT", pixels)
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("depth", "row", "clear", "expected"),
    [
        (1, [0, 1, 0, 1, 1, 1, 1, 0], 0, [255] * 8),
        (1, [0, 1, 0, 1, 1, 1, 1, 0], 1, [0, 255, 0, 255, 255, 255, 255, 0]),
        (2, [0, 1, 2, 3], 2, [0, 85, 255, 255]),
        (4, [0, 7, 8, 15], 7, [0, 255, 136, 255]),
        (8, [0, 7, 8, 255], 8, [0, 7, 255, 255]),
        (16, [0, 0x0100, 0x0101, 0xFF00], 0x0100, [0, 255, 1, 254]),
    ],
)
def test_a_clear_grey_of_any_depth(depth: int, row: list[int], clear: int, expected: list[int]) -> None:
    bits = "".join(f"{value:0{depth}b}" for value in row)
    data = png_of(depth, 0, [int(bits, 2).to_bytes(len(bits) // 8, "big")], len(row), (clear,))
    assert shown(data)[0, :, 0].tolist() == expected


def test_a_clear_colour_of_8_and_of_16_bits() -> None:
    assert shown(png_of(8, 2, [bytes([1, 2, 3, 1, 2, 4])], 2, (1, 2, 3))).tolist() == [[[255] * 3, [1, 2, 4]]]
    row = struct.pack(">6H", 0x0102, 0x0203, 0x0304, 0x4444, 0x5555, 0x6666)
    assert shown(png_of(16, 2, [row], 2, (0x0102, 0x0203, 0x0304))).tolist() == [[[255] * 3, [0x44, 0x55, 0x66]]]


def swapped_profile() -> bytes:
    """sRGB with red and blue exchanged: whoever applies it exchanges them."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", profile, 128)
    tags = {bytes(profile[132 + 12 * n : 136 + 12 * n]): 132 + 12 * n for n in range(count)}
    profile[tags[b"rXYZ"] : tags[b"rXYZ"] + 4], profile[tags[b"bXYZ"] : tags[b"bXYZ"] + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_colour_profile_is_applied(kind: str) -> None:
    options = {**LOSSLESS[kind], "icc_profile": swapped_profile()}
    pixels = np.asarray(noise())
    assert_close(shown(encoded(noise(), kind, **options)), pixels[..., ::-1])
    transparent = noise().convert("RGBA")
    transparent.putalpha(128)
    over = shown(encoded(transparent, kind, **options))
    assert_close(over, pixels[..., ::-1] * (128 / 255) + 127)
    palette = noise().quantize(16)
    if kind == "PNG":
        assert_close(
            shown(encoded(palette, icc_profile=swapped_profile())), np.asarray(palette.convert("RGB"))[..., ::-1]
        )


def test_the_profile_that_is_srgb_changes_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(shown(encoded(noise(), icc_profile=srgb)), np.asarray(noise()))


@pytest.mark.parametrize("profile", [b"not a profile" * 20, swapped_profile()[:300], swapped_profile()[:132]])
def test_a_broken_profile_is_ignored(profile: bytes) -> None:
    np.testing.assert_array_equal(shown(encoded(noise(), icc_profile=profile)), np.asarray(noise()))


def test_a_profile_of_another_colour_space_is_ignored() -> None:
    grey = noise().convert("L")
    data = encoded(grey, icc_profile=swapped_profile())
    np.testing.assert_array_equal(shown(data)[..., 0], np.asarray(grey))


def test_cmyk_is_ink_on_paper() -> None:
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert_close(shown(encoded(ink, "TIFF"))[0, 0], (255, 0, 0))
    assert_close(shown(encoded(ink, "JPEG", quality=95))[0, 0], (255, 0, 0), within=3)  # inverted, as Adobe's are


def test_lab_is_what_it_was_made_of() -> None:
    plain = Image.new("RGB", (8, 8), (200, 40, 90))
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(plain, to_lab)
    assert lab is not None
    assert_close(shown(encoded(lab, "TIFF"))[0, 0], (200, 40, 90), within=3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_shown(kind: str) -> None:
    first, second = Image.new("RGB", (16, 16), (0, 0, 255)), Image.new("RGB", (16, 16), (255, 0, 0))
    data = encoded(first, kind, save_all=True, append_images=[second], **({"lossless": True} if kind == "WEBP" else {}))
    assert shown(data)[3, 3].tolist() == [0, 0, 255]


def test_the_picture_for_programs_without_animations_is_not_a_frame() -> None:
    still, first = Image.new("RGB", (16, 16), (0, 255, 0)), Image.new("RGB", (16, 16), (0, 0, 255))
    data = encoded(still, save_all=True, default_image=True, append_images=[first, Image.new("RGB", (16, 16))])
    assert shown(data)[3, 3].tolist() == [0, 0, 255]
    assert np.asarray(decode(data, LIMITS, AS_STORED))[3, 3].tolist() == [0, 255, 0]


def test_a_first_frame_of_gif_that_fills_a_part_is_on_the_background() -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([200, 0, 0])
    data = bytearray(encoded(image, "GIF"))
    data[6:10] = struct.pack("<HH", 8, 8)  # a canvas larger than the frame
    ours = shown(bytes(data))
    assert ours.shape == (8, 8, 3)
    assert ours[1, 1].tolist() == [200, 0, 0]
    assert ours[6, 6].tolist() == [255, 255, 255]


@pytest.mark.parametrize("is_compressed", [True, False])
@pytest.mark.parametrize("is_behind", [True, False])
def test_large_texts_in_a_png_are_no_damage(is_compressed: bool, is_behind: bool) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text(
        "prompt",
        "x" * 3_000_000,
        zip=is_compressed,
    )
    info.add_itxt("workflow", "x" * 3_000_000, zip=is_compressed)
    data = encoded(noise(), pnginfo=info)
    if is_behind:
        plain = encoded(noise())
        texts = data[33 : data.index(b"IDAT") - 4]
        data = plain[:-12] + texts + plain[-12:]
    np.testing.assert_array_equal(shown(data), np.asarray(noise()))


def test_texts_that_unpack_to_gigabytes_are_never_unpacked() -> None:
    bomb = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**20 - 10)))
    plain = encoded(noise())
    np.testing.assert_array_equal(shown(plain[:33] + bomb * 100 + plain[33:]), np.asarray(noise()))


def test_an_icon_shows_its_largest_picture() -> None:
    large = Image.new("RGBA", (64, 64), (0, 0, 255, 255))
    large.paste((0, 0, 0, 0), (0, 0, 32, 64))
    data = encoded(large, "ICO", sizes=[(16, 16), (64, 64)])
    ours = shown(data)
    assert ours.shape == (64, 64, 3)
    assert ours[5, 5].tolist() == [255, 255, 255]
    assert ours[5, 60].tolist() == [0, 0, 255]


def test_an_icon_whose_directory_lies_is_refused_unread() -> None:
    data = bytearray(encoded(Image.new("RGB", (64, 64)), "ICO", sizes=[(64, 64)]))
    at = data.index(b"IHDR") + 4
    data[at : at + 8] = struct.pack(">II", 60_000, 60_000)
    for read in (lambda: decode(bytes(data), LIMITS), lambda: picture_size(bytes(data), LIMITS)):
        with pytest.raises(RowError, match="max_pixels") as caught:
            read()
        assert caught.value.code == ErrorCode.IMAGE_TOO_LARGE


@pytest.mark.parametrize("alpha", [0, 1])
def test_a_bitmap_with_nothing_in_its_alpha_is_opaque(alpha: int) -> None:
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0) + masks + bytes(52)
    pixels = bytes([30, 20, 10, 0, 60, 50, 40, alpha])
    data = struct.pack("<2sIHHI", b"BM", 14 + len(header) + 8, 0, 0, 14 + len(header)) + header + pixels
    assert Image.open(BytesIO(data)).mode == "RGBA"
    expected = [[10, 20, 30], [40, 50, 60]] if alpha == 0 else [[255, 255, 255], [254, 254, 254]]
    assert shown(data)[0].tolist() == expected
