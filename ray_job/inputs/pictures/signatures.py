"""What bytes are, by how they begin: pictures that can be read, and what is found in their place."""

from __future__ import annotations

import re
from typing import NamedTuple

from PIL import features
from PIL.ImageFile import ImageFile

_HEAD_BYTES = 4096
_SHOWN_CHARS = 40
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2")
_AVIF_BRANDS = (b"avif", b"avis")

# A pattern of the first bytes, and the format's name.
_PICTURES = (
    (rb"\xff\xd8\xff[\xc0-\xfe]", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"GIF8[79]a", "GIF"),
    (rb"RIFF....WEBP", "WebP"),
    (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "BMP"),
    (rb"(II[*+]\0|MM\0[*+])", "TIFF"),
    (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51\0", "JPEG 2000"),
    (rb"P[1-6f]\s[\s\d#]", "PNM"),
    (rb"\0\0\x01\0[\x01-\x40]\0", "ICO"),
)


class _Kind(NamedTuple):
    """What is no picture that can be read."""

    pattern: bytes  # of the first bytes
    what: str
    remedy: str


_CONVERT = "convert it to PNG or JPEG first"
_DEVELOP = "develop it to JPEG or TIFF first"
_UNPACK = "unpack it first"
_DOCUMENT = "its pages must become pictures first"
_FRAMES = "take pictures out of it first"
_KINDS = (
    _Kind(rb"(\xff\x0a|\0\0\0\x0cJXL )", "JPEG XL", _CONVERT),
    _Kind(rb"8BPS", "PSD", _CONVERT),
    _Kind(rb"v/1\x01", "OpenEXR", _CONVERT),
    _Kind(rb"#\?(RADIANCE|RGBE)", "Radiance HDR", _CONVERT),
    _Kind(rb"DDS ", "DDS", _CONVERT),
    _Kind(rb"icns", "ICNS", _CONVERT),
    _Kind(rb"gimp xcf", "XCF", _CONVERT),
    _Kind(rb"SIMPLE  =", "FITS", _CONVERT),
    _Kind(rb"P7\s", "PAM", _CONVERT),
    _Kind(rb"\0\0\x02\0[\x01-\x40]\0", "a cursor (CUR)", _CONVERT),
    _Kind(rb"qoif", "QOI", _CONVERT),
    _Kind(rb"[\x8a\x8b][MJ]NG\r\n", "MNG or JNG", _CONVERT),
    _Kind(rb"BPG\xfb", "BPG", _CONVERT),
    _Kind(rb"\x97JB2", "JBIG2", _CONVERT),
    _Kind(rb"\x0a[\0-\x05]\x01[\x01\x02\x04\x08]", "PCX", _CONVERT),
    _Kind(rb"\x01\xda[\0\x01][\x01\x02]\0", "SGI", _CONVERT),
    _Kind(rb"/\* XPM", "XPM", _CONVERT),
    _Kind(rb"PF\s", "PFM in colour", _CONVERT),
    _Kind(rb".{128}DICM", "DICOM", _CONVERT),
    _Kind(rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript", _CONVERT),
    _Kind(rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", "a Windows metafile", _CONVERT),
    _Kind(rb"II[*]\0.{4}CR", "CR2 (RAW)", _DEVELOP),
    _Kind(rb"....ftypcrx ", "CR3 (RAW)", _DEVELOP),
    _Kind(rb"FUJIFILMCCD-RAW", "RAF (RAW)", _DEVELOP),
    _Kind(rb"II(RO|RS)|MMOR", "ORF (RAW)", _DEVELOP),
    _Kind(rb"IIU\0", "RW2 (RAW)", _DEVELOP),
    _Kind(rb"FOVb", "X3F (RAW)", _DEVELOP),
    _Kind(rb"\0MRM", "MRW (RAW)", _DEVELOP),
    _Kind(rb"[\s\S]{0,1000}?%PDF-\d", "PDF, a document", _DOCUMENT),
    _Kind(rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a Microsoft Office file, a document", _DOCUMENT),
    _Kind(rb"\{\\rtf", "RTF, a document", _DOCUMENT),
    _Kind(rb"AT&TFORM....DJV", "DjVu, a document", _DOCUMENT),
    _Kind(rb"....ftyp|.{4}(moov|mdat|wide|free)", "a video (MP4 or QuickTime)", _FRAMES),
    _Kind(rb"\x1a\x45\xdf\xa3", "a video (Matroska or WebM)", _FRAMES),
    _Kind(rb"RIFF....AVI ", "a video (AVI)", _FRAMES),
    _Kind(rb"\0\0\x01[\xba\xb3]|G.{187}G.{187}G", "a video (MPEG)", _FRAMES),
    _Kind(rb"FLV\x01", "a video (Flash)", _FRAMES),
    _Kind(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a video (Windows Media)", _FRAMES),
    _Kind(rb"ID3|OggS|fLaC|RIFF....WAVE", "a sound", "no picture is in it"),
    _Kind(rb"PK(\x03\x04|\x05\x06)", "a zip archive", _UNPACK),
    _Kind(rb"\x1f\x8b", "gzip data", _UNPACK),
    _Kind(rb"BZh[1-9]|\xfd7zXZ\0|\x28\xb5\x2f\xfd|\x04\x22\x4d\x18", "compressed data", _UNPACK),
    _Kind(rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07", "an archive", _UNPACK),
    _Kind(rb".{257}ustar", "a tar archive", _UNPACK),
    _Kind(rb"PAR1|ARROW1|\x89HDF\r\n|\x93NUMPY|SQLite format 3", "a file of data", "take the picture out of it first"),
    _Kind(rb"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself with `git lfs pull`"),
)
_FAILED = "the download probably failed"
_HTML = re.compile(rb"<(!doctype\s+html|html|head|body|title|script|meta|div|center|h1|p)\b", re.IGNORECASE)
_CFA, _LINEAR_RAW = 32803, 34892  # photometric interpretations
_REDUCED = 1


def picture_format(head: bytes) -> str | None:
    """The name of the format of a picture that can be read, HEIC perhaps with an extra; None: it is none.

    Args:
        head: the first bytes, 32 at least where there are as many.
    """
    if head[4:8] == b"ftyp":
        return "AVIF" if _brands(head) & set(_AVIF_BRANDS) else "HEIC" if is_heif(head) else None
    return next((name for pattern, name in _PICTURES if re.match(pattern, head, re.DOTALL)), None)


def is_heif(data: bytes) -> bool:
    """Whether it is HEIF, coded in another way than AVIF."""
    if data[4:8] != b"ftyp" or _brands(data) & set(_AVIF_BRANDS):
        return False
    return data[8:12] in _HEIF_BRANDS or bool(_brands(data) & set(_HEIF_BRANDS))


def described(data: bytes) -> str | None:
    """What bytes are that are no picture, and what to do; None where they may be a damaged one."""
    head = data[:_HEAD_BYTES]
    if picture_format(head) is not None and not re.match(rb"II[*]\0.{4}CR", head, re.DOTALL):
        return "the picture is AVIF, which this Pillow cannot read; install pillow>=11.3" if _lacks_avif(head) else None
    if not head.strip(b"\0"):
        return f"it is {len(data)} zero bytes, not a picture; {_FAILED}" if not data.strip(b"\0") else None
    text = _as_text(head)
    if text is not None and (what := _of_text(text)):
        return what
    for kind in _KINDS:
        if re.match(kind.pattern, head, re.DOTALL):
            return f"the picture is {kind.what}; {kind.remedy}"
    if text is not None:
        return f"it is text, not a picture: it begins with {text[:_SHOWN_CHARS].decode(errors='replace')!r}"
    return None


def camera_raw(data: bytes, image: ImageFile) -> str | None:
    """The name of a camera's own format that an opened TIFF really is: what can be opened of it is a preview."""
    tags = getattr(image, "tag_v2", {})
    if data[8:10] == b"CR" and data[:4] == b"II*\0":
        return "CR2 (RAW)"
    if 50706 in tags:
        return "DNG (RAW)"
    is_preview = tags.get(254) == _REDUCED and 330 in tags
    return "RAW of a camera" if is_preview or tags.get(262) in (_CFA, _LINEAR_RAW) else None


def _brands(data: bytes) -> set[bytes]:
    """Of an ISO media file: the main one, and those it is compatible with."""
    end = min(int.from_bytes(data[:4], "big"), len(data), 256)
    return {data[8:12], *(data[place : place + 4] for place in range(16, end - 3, 4))}


def _lacks_avif(head: bytes) -> bool:
    return picture_format(head) == "AVIF" and not features.check("avif")


def _as_text(head: bytes) -> bytes | None:
    """The head as UTF-8 where it is readable text, in any of Unicode's encodings or in Latin-1."""
    encodings = ("utf-16",) if head[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "latin-1")
    for encoding in encodings:
        # The last letter may be cut.
        try:
            text = head.decode(encoding, errors="strict" if len(head) < _HEAD_BYTES else "ignore").strip()
        except UnicodeDecodeError:
            continue
        is_readable = text and all(letter.isprintable() or letter.isspace() for letter in text)
        if is_readable and len(text) > len(head) // 4:
            return text.encode()
    return None


def _of_text(text: bytes) -> str | None:
    """A kind of text that has a name."""
    if re.search(rb"<svg\b", text):
        return f"the picture is SVG, a drawing; {_CONVERT}"
    if _HTML.match(text) or (text.startswith(b"<!--") and _HTML.search(text)):
        return f"it is an HTML page, not a picture; {_FAILED}"
    if text.startswith(b"<"):
        is_html = re.search(rb"<html\b", text, re.IGNORECASE)
        return f"it is an {'HTML page' if is_html else 'XML text'}, not a picture; {_FAILED}"
    if re.match(rb'\{\s*"|\[\s*[\{\["\d]|\{\s*\}', text):
        return f"it is JSON, not a picture; {_FAILED}"
    return None
