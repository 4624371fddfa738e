"""The answers about a document's pages as one Markdown text, and where in it each page stands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

SPAN_TYPE = pa.struct(
    [
        ("page", pa.int32()),  # the first of the row's; null where the document could not be opened
        ("start", pa.int64()),  # characters of the text, the row's answer alone
        ("end", pa.int64()),
        ("status", pa.string()),
        ("error", pa.string()),  # code and message; null in an answered row
    ]
)


@dataclass(frozen=True, slots=True)
class PageAnswer:
    """One record of an output."""

    key: int  # sorts records as the input's rows and their questions
    page: int | None
    last_page: int | None
    text: str | None
    status: str
    error: str | None


def joined(answers: Iterable[PageAnswer]) -> tuple[str, list[dict[str, Any]]]:
    """The text, and values of SPAN_TYPE, in page order; a failed page stands in its place as a quoted line."""
    pieces: list[str] = []
    spans: list[dict[str, Any]] = []
    length = 0
    shown: int | None = None
    for answer in sorted(answers, key=lambda answer: (answer.page or 0, answer.key)):
        heading = "" if answer.page is None or answer.page == shown else f"<!-- {_named(answer)} -->\n\n"
        shown = answer.page
        text = (answer.text or "").strip() if answer.error is None else ""
        body = text if answer.error is None else f"> **{_named(answer)} failed:** {' '.join(answer.error.split())}"
        start = length + len(heading)
        end = start + len(text)
        spans.append({"page": answer.page, "start": start, "end": end, "status": answer.status, "error": answer.error})
        pieces.append(f"{heading}{body}\n\n")
        length += len(pieces[-1])
    return "".join(pieces), spans


def _named(answer: PageAnswer) -> str:
    if answer.page is None:
        return "The document"
    if answer.last_page in (None, answer.page):
        return f"Page {answer.page}"
    return f"Pages {answer.page} to {answer.last_page}"
