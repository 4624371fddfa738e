"""Formats are known by their content, and what cannot be read is called by its name."""

from __future__ import annotations

import gzip
import json
import random
import struct
import sys
import zipfile
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.pictures.decode import decode, picture_size
from ray_job.inputs.pictures.signatures import described, picture_format
from ray_job.spec import LimitsSpec

from .conftest import encoded, noise

LIMITS = LimitsSpec()


def _zip() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", encoded(noise()))
    return buffer.getvalue()


def _message(data: bytes) -> str:
    """What running and planning both say."""
    with pytest.raises(RowError) as ran:
        decode(data, LIMITS)
    with pytest.raises(RowError) as planned:
        picture_size(data, LIMITS)
    assert ran.value.code == planned.value.code == ErrorCode.IMAGE_UNREADABLE
    assert ran.value.message == planned.value.message
    return ran.value.message


PAGE = "<html><head><title>404 Not Found</title></head><body>nginx</body></html>"
NAMED = {
    b"<!DOCTYPE html>" + PAGE.encode(): "is an HTML page, not a picture; the download probably failed",
    b"\xef\xbb\xbf\r\n  " + PAGE.encode(): "is an HTML page",
    PAGE.upper().encode(): "is an HTML page",
    PAGE.encode("utf-16"): "is an HTML page",
    b"<!-- served by cache-7 -->\n" + PAGE.encode(): "is an HTML page",
    b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML"><html xmlns="x"></html>': "is an HTML page",
    b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>': "is an XML text, not a picture",
    b'{"error": "not found"}': "is JSON, not a picture",
    b'[{"a": 1}]': "is JSON, not a picture",
    b"These are not pixels.\n": "it begins with 'These are not pixels.'",
    "Größe: 5 Äpfel".encode("latin-1"): "it begins with 'Größe: 5 Äpfel'",
    "Größe".encode() * 2000: "it begins with 'Größe",
    b"\0\0\2\0\1\0\x10\x10" + b"\0" * 90: "cursor",
    b"qoif\0\0\0\1" + b"\0" * 90: "QOI",
    b"AT&TFORM\0\0\1\0DJVM" + b"\0" * 90: "DjVu, a document",
    b"BMW builds cars": "it begins with 'BMW builds cars'",
    b"P3 is a code of ours": "P3 is a code",
    b'<svg xmlns="http://www.w3.org/2000/svg" width="1"/>': "SVG",
    b'<?xml version="1.0"?><!-- drawn --><svg width="1"/>': "SVG",
    b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + b"\0" * 90: "PDF, a document",
    b"8BPS\0\1" + b"\0" * 90: "PSD",
    b"\xff\x0a\xfa\x1f\0" + b"\x90" * 90: "JPEG XL",
    b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 90: "JPEG XL",
    b"II*\0\x10\0\0\0CR\2\0" + b"\0" * 90: "CR2",
    b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + b"\0" * 90: "CR3",
    b"FUJIFILMCCD-RAW 0201" + b"\0" * 90: "RAF",
    b"\0\0\0\x18ftypisom\0\0\0\0isommp41" + b"\0" * 90: "video",
    b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + b"\0" * 90: "video",
    b"\x1a\x45\xdf\xa3" + b"\0" * 90: "video",
    b"RIFF\x24\0\0\0AVI LIST" + b"\0" * 90: "video",
    _zip(): "zip",
    gzip.compress(encoded(noise())): "gzip",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "PostScript",
    b"\0" * 128 + b"DICM" + b"\2\0" * 90: "DICOM",
    b"PF\n2 1\n-1.0\n" + bytes(24): "PFM in colour",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n": "git lfs pull",
    b"\0" * 5000: "5000 zero bytes",
}


@pytest.mark.parametrize(("data", "words"), NAMED.items(), ids=lambda value: value if isinstance(value, str) else "-")
def test_what_is_no_picture_is_called_by_its_name(data: bytes, words: str) -> None:
    assert words in _message(data)


def test_json_of_any_form_is_no_picture() -> None:
    for value in ({}, {"a": None}, [1, 2], ["x"]):
        assert "JSON" in _message(json.dumps(value, indent=2).encode())


def _raw_of_a_camera(tags: list[tuple[int, int, int]]) -> bytes:
    """A TIFF that opens, with more tags: (tag, type, value)."""
    image = Image.fromarray(np.zeros((4, 4), np.uint8))
    return encoded(image, "TIFF", tiffinfo={tag: value for tag, _, value in tags})


@pytest.mark.parametrize(("tags", "name"), [([(50706, 1, 1)], "DNG"), ([(254, 4, 1), (330, 4, 8)], "RAW of a camera")])
def test_a_preview_in_a_cameras_file_is_not_its_picture(tags: list[tuple[int, int, int]], name: str) -> None:
    assert name in _message(_raw_of_a_camera(tags))


def test_pixels_that_pillow_does_not_read_are_no_damage() -> None:
    data = encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")
    bits = struct.pack("<HHIH", 258, 3, 1, 32)
    assert bits in data
    assert "floats of 64 bits" in _message(data.replace(bits, struct.pack("<HHIH", 258, 3, 1, 64)))


PICTURES = {
    "JPEG": ("JPEG", noise()),
    "PNG": ("PNG", noise()),
    "WebP": ("WEBP", noise()),
    "GIF": ("GIF", noise()),
    "BMP": ("BMP", noise()),
    "TIFF": ("TIFF", noise()),
    "AVIF": ("AVIF", noise()),
    "JPEG 2000": ("JPEG2000", noise()),
    "PNM": ("PPM", noise()),
    "ICO": ("ICO", noise()),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_known_by_its_content(name: str) -> None:
    kind, image = PICTURES[name]
    data = encoded(image, kind)
    assert picture_format(data[:32]) == name
    assert described(data) is None
    expected = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(decode(data, LIMITS)), expected)


@pytest.mark.parametrize("text", [b"P1 2 1 1 0", b"P2 2 1 255 0 255", b"P3 2 1 255 0 0 0 255 255 255"])
def test_pnm_written_as_text(text: bytes) -> None:
    assert np.asarray(decode(text, LIMITS))[0].tolist() == [[0] * 3, [255] * 3]


def test_a_codestream_of_jpeg_2000_without_a_box() -> None:
    data = encoded(noise(), "JPEG2000", no_jp2=True, irreversible=False)
    assert data[:4] == b"\xff\x4f\xff\x51"
    np.testing.assert_array_equal(np.asarray(decode(data, LIMITS)), np.asarray(noise()))


HEIC = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic") + bytes(300)


def test_heic_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "HEIC; install ray_job[heif]" in _message(HEIC)
    others = HEIC.replace(b"heic", b"mif1", 1)
    assert "HEIC; install ray_job[heif]" in _message(others)


def test_any_bytes_are_described_or_not_and_never_raise() -> None:
    dice = random.Random(4)
    heads = [*NAMED, *(encoded(image, kind) for kind, image in PICTURES.values()), HEIC]
    for _ in range(500):
        data = bytearray(dice.choice(heads)[: dice.choice((3, 12, 40, 400))])
        for _ in range(dice.randrange(4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        described(bytes(data))
        picture_format(bytes(data[:32]))
