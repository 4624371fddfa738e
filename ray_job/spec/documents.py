"""Which pages of documents are asked about, and what a page may cost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from ray_job.spec.section import Section

_RANGE = re.compile(r"(-?\d+)(?:(-)(-?\d+)?)?")
PageRanges = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]


class DocumentsSpec(Section):
    """Documents: PDF files and TIFF files of several pages."""

    pages: PageRanges | None = Field(
        None,
        description="Which pages, as in '1-3,-1': numbers and ranges, counted from 1, or from the end where negative "
        "('-1' is the last page, '5-' all from the fifth on). Default: all.",
    )
    pages_per_row: int | None = Field(
        None,
        ge=1,
        le=64,
        description="A document is a row with at most so many pages as its pictures, or several rows where it has "
        "more. Default: each page is a row.",
    )
    password_env: str | None = Field(
        None,
        min_length=1,
        description="Name of the environment variable, where the job is started, with the password of encrypted "
        "documents.",
    )
    password_column: str | None = Field(
        None, description="Column with the password of the row's documents; it is not passed through to the output."
    )
    deadline_s: float = Field(
        30.0,
        gt=0,
        description="Seconds a document may take to be opened, and a page to be drawn; what takes longer is an error.",
    )
    max_pages: int = Field(10_000, ge=1, description="Pages chosen of one document; one with more is an error, whole.")
    max_document_bytes: int = Field(256 * 2**20, ge=1, description="Bytes of a document.")
    max_memory_mib: int = Field(
        2048, ge=256, description="Memory that opening a document or drawing a page may take, in a process of its own."
    )

    @field_validator("pages")
    @classmethod
    def _are_ranges(cls, pages: str | None) -> str | None:
        if pages is not None:
            parse_ranges(pages)
        return pages

    def chosen(self, num_pages: int) -> Sequence[int]:
        """The pages of a document with `num_pages` that are asked about, from 1, in order, each once."""
        if self.pages is None:
            return range(1, num_pages + 1)
        found: set[int] = set()
        for first, last in parse_ranges(self.pages):
            start, stop = (place if place > 0 else num_pages + 1 + place for place in (first, last))
            found.update(range(max(1, start), min(num_pages, stop) + 1))
        whole = range(min(found, default=1), max(found, default=0) + 1)
        return whole if len(whole) == len(found) else sorted(found)


def parse_ranges(text: str) -> list[tuple[int, int]]:
    """First and last page of each range; negative ones count from the end, -1 is the last page.

    Raises:
        ValueError: the text is no list of ranges, a page is 0, or a range runs backwards.
    """
    ranges = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.replace(" ", ""))
        if match is None:
            raise ValueError(f"{part.strip()!r} is no page and no range; write pages as in '1-3,-1'")
        first = int(match[1])
        last = first if match[2] is None else int(match[3] or -1)
        if 0 in (first, last):
            raise ValueError(f"{part.strip()!r}: pages count from 1, and from the end from -1")
        if (first > 0) == (last > 0) and first > last:
            raise ValueError(f"{part.strip()!r} runs backwards; write the smaller page first")
        ranges.append((first, last))
    return ranges
