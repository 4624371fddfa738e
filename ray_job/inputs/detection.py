"""What a file holds: by its name where that tells, otherwise by its first bytes.

Text formats (JSON, CSV) are told by content only where a name says nothing: a Markdown file with commas is no table.
Nothing is opened here.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Literal, TypeAlias

import pyarrow as pa

from ray_job.spec.input import Format

HEAD_BYTES = 16 * 2**10
"""How much of a file's beginning is enough for `by_content`."""

Kind: TypeAlias = Format | Literal["object", "text", "hidden", "marker", "empty", "other"]
"""A format, or: one JSON object (a description more often than a row), a text of words, a file that systems leave
behind and that begins with a dot or not, one without a byte, anything else."""

SUFFIXES: dict[Format, tuple[str, ...]] = {
    "parquet": (".parquet", ".pq"),
    "jsonl": (".jsonl", ".ndjson"),
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "images": (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
        *(".heic", ".heif", ".hif", ".avif", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".ico"),
    ),
    "arrow": (".arrow", ".feather", ".ipc"),
    "webdataset": (".tar", ".tar.gz", ".tgz"),
    "documents": (".pdf",),
    "video": (  # not .ts, which is TypeScript's too: its content tells
        *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".m2ts", ".mpg", ".mpeg", ".vob"),
        *(".flv", ".wmv", ".asf", ".ogv", ".mxf", ".ivf", ".h264", ".264", ".hevc", ".265"),
    ),
}
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\x04\x22\x4d\x18": "lz4"}
_COMPRESSED_SUFFIXES = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".lz4")
_TEXTS = (".txt", ".md", ".rst", ".log", ".caption")
# fmt: off
_OTHERS = (
    ".html", ".htm", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".py", ".ipynb", ".js", ".css", ".sh", ".sql",
    ".doc", ".docx", ".xls", ".xlsx", ".ppt", ".pptx", ".zip", ".7z", ".rar",
    ".mp3", ".wav", ".flac", ".m4a", ".aae", ".xmp", ".svg", ".npy", ".npz", ".pt", ".pkl", ".safetensors", ".bin",
    ".lock", ".sha256", ".md5",
)
# fmt: on
_MARKERS = re.compile(
    r"_success|_committed_.*|_started_.*|_metadata|_common_metadata|.*\.(?:crc|tmp|part)|(?:eh)?thumbs\.db"
    r"|desktop\.ini|icon\r",
    re.DOTALL,
)
_PICTURES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|BM....\0\0\0\0|II\*\0|MM\0\*|II\+\0|MM\0\+"
    rb"|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51|P[1-6]\s++(?:#[^\n]*+\s++)*+\d++\s++\d++\s|\0\0\x01\0[^\0]\0"
    rb"|....ftyp(?:heic|heix|hevc|heim|heis|mif1|msf1|avif|avis|miaf)",
    re.DOTALL,
)
_BINARY: dict[Format, re.Pattern[bytes]] = {
    "images": _PICTURES,
    "parquet": re.compile(rb"PAR[1E][^\w\s,;|]"),
    "arrow": re.compile(rb"ARROW1\0\0|FEA1|\xff\xff\xff\xff..\0\0", re.DOTALL),
    "documents": re.compile(rb"[\0-\x20\xef\xbb\xbf]{0,64}%PDF-"),
    "webdataset": re.compile(rb".{257}ustar[\0 ]", re.DOTALL),
    # After pictures, which are boxes of the same kind.
    "video": re.compile(
        rb"....(?:ftyp(?!M4A|M4B)|moov|mdat|wide)|\x1a\x45\xdf\xa3|RIFF....AVI |FLV\x01|\x00\x00\x01\xba"
        rb"|\x30\x26\xb2\x75\x8e\x66\xcf\x11|G.{187}G.{187}G|.{4}G.{191}G.{191}G",
        re.DOTALL,
    ),
}
# The longer marks first: that of UTF-32 begins as that of UTF-16 does.
_BOMS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xef\xbb\xbf": "utf-8",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


def detect(name: str, first_bytes: bytes) -> Kind:
    """What a file holds, by its name or, where that does not tell, by its first HEAD_BYTES."""
    kind = by_name(name)
    return by_content(first_bytes) if kind is None else kind


def by_name(name: str) -> Kind | None:
    """What a file's name, relative to the input, says about it; None where only the content tells."""
    parts = name.split("/")
    base = parts[-1].lower()
    if name.startswith(".") or "/." in name or "__MACOSX" in parts:
        return "hidden"
    if _MARKERS.fullmatch(base):
        return "marker"
    bare = next((base.removesuffix(suffix) for suffix in _COMPRESSED_SUFFIXES if base.endswith(suffix)), base)
    for format_, suffixes in SUFFIXES.items():
        if base.endswith(suffixes) or (format_ in ("jsonl", "csv", "tsv") and bare.endswith(suffixes)):
            return format_
    if base.endswith(_TEXTS):
        return "text"
    return "other" if base.endswith(_OTHERS) else None


def by_content(first_bytes: bytes, encoding: str | None = None) -> Kind:
    """What a file's first HEAD_BYTES are the beginning of; of compressed ones, what is in them.

    Args:
        first_bytes: of the file.
        encoding: of texts without a byte order mark; by default UTF-8.
    """
    if not first_bytes:
        return "empty"
    for format_, pattern in _BINARY.items():
        if pattern.match(first_bytes):
            return format_
    codec = compression_of(first_bytes)
    if codec is not None:
        inner = by_content(decompressed(first_bytes, codec), encoding)
        return inner if inner in ("jsonl", "json", "object", "csv", "tsv", "webdataset") else "other"
    return _by_text(first_bytes, encoding)


def compression_of(first_bytes: bytes) -> str | None:
    """The codec, as Arrow calls it, that a file is compressed with."""
    return next((codec for magic, codec in COMPRESSIONS.items() if first_bytes.startswith(magic)), None)


def encoding_of(first_bytes: bytes) -> str | None:
    """The encoding that a byte order mark tells; None without one."""
    return next((encoding for mark, encoding in _BOMS.items() if first_bytes.startswith(mark)), None)


def _by_text(first_bytes: bytes, encoding: str | None) -> Kind:
    try:
        text = first_bytes.decode(encoding_of(first_bytes) or encoding or "utf-8", errors="ignore")
    except UnicodeError:
        return "other"
    text = text.lstrip("\ufeff \t\r\n\x1e")
    if not text or "\0" in text:
        return "other"
    if text[0] == "{":
        return _json_kind(text, is_whole=len(first_bytes) < HEAD_BYTES)
    if text[0] == "[" and text[1:].lstrip()[:1] in ("{", "]"):
        return "json"
    return _table_kind(text.splitlines())


def _json_kind(text: str, is_whole: bool) -> Kind:
    """Lines of objects, or a single one over as many lines as it likes."""
    first, newline, rest = text.partition("\n")
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        # Longer than what was read, or broken: a line of many is the likelier.
        return "jsonl" if not newline and not is_whole else "object"
    return "jsonl" if rest.strip() else "object"


def _table_kind(lines: list[str]) -> Kind:
    """Comma- or tab-separated: where the first lines have as many separators each."""
    lines = [line for line in lines[:5] if line.strip()]
    kinds: dict[str, Kind] = {"\t": "tsv", ",": "csv", ";": "csv"}
    for delimiter, kind in kinds.items():
        counts = {line.count(delimiter) for line in lines if '"' not in line}
        if len(lines) > 1 and len(counts) == 1 and counts != {0}:
            return kind
    return "other"


def decompressed(first_bytes: bytes, codec: str) -> bytes:
    """The beginning of what is in a compressed beginning, up to where that ends or is damaged."""
    data = bytearray()
    for step in (HEAD_BYTES // 8, 1):  # a read that meets the end gives nothing at all
        data.clear()
        stream = pa.CompressedInputStream(pa.BufferReader(first_bytes), codec)
        with suppress(OSError, pa.ArrowException), stream:
            while len(data) < HEAD_BYTES // 8 and (read := stream.read(step)):
                data += read
            break
    return bytes(data)
