"""References to a page: `a/report.pdf#page=3`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

HEAD_BYTES = 1024
CHOOSE_A_PAGE = (
    "name one with #page=1 (or 2, …) behind its path, or set input.format to documents, where each page is a row"
)
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")
_SUFFIX = ".pdf"
_DATA_CHARS = 40
_MARK = "#page="
_NUMBER = re.compile(r"[1-9]\d{0,8}")


def page_reference(name: str, page: int) -> str:
    """What names a page of a file, from 1."""
    return f"{name}{_MARK}{page}"


def split_reference(reference: str) -> tuple[str, int | None]:
    """The file that a reference names, and the page of it; None where it names a whole file."""
    if reference[:_DATA_CHARS].lstrip()[:5].lower() == "data:":  # it may be long
        return reference, None
    file, _, number = reference.rpartition(_MARK)
    return (file, int(number)) if file and _NUMBER.fullmatch(number) else (reference, None)


def page_of(value: Any) -> int | None:
    """The page that a picture's value names: a path, a URI, or a {bytes, path} struct."""
    path = value.get("path") if isinstance(value, Mapping) else value
    return split_reference(path)[1] if isinstance(path, str) else None


def names_document(value: Any) -> bool:
    """Whether a path, URI or data URI names a page or a PDF file, or bytes are a PDF."""
    if isinstance(value, str):
        file, page = split_reference(value)
        start, end = file[:_DATA_CHARS].lstrip().lower(), file[-len(_SUFFIX) :].lower()
        return page is not None or start.startswith("data:application/pdf") or (start[:5] != "data:" and end == _SUFFIX)
    return isinstance(value, bytes | bytearray | memoryview) and is_pdf(bytes(value[:HEAD_BYTES]))


def is_pdf(head: bytes) -> bool:
    """Whether a file begins as a PDF does: other bytes may stand before its header, but not those of a picture."""
    return b"%PDF-" in head[:HEAD_BYTES] and not head.startswith(_PICTURES)


def range_reference(name: str, pages: Iterable[int]) -> str:
    """What names several pages of a file: `a.pdf#pages=1-8` or `a.pdf#pages=1-3,10`."""
    runs: list[list[int]] = []
    for page in pages:
        if runs and page == runs[-1][1] + 1:
            runs[-1][1] = page
        else:
            runs.append([page, page])
    return f"{name}#pages={','.join(str(a) if a == b else f'{a}-{b}' for a, b in runs)}"
