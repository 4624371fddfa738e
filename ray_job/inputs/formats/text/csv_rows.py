"""Rows of CSV and TSV: which lines belong together, and the fields of each.

RFC 4180: a field that begins with a quote may hold delimiters, newlines and doubled quotes; elsewhere a quote is a
character. An empty field is null, an empty quoted one is an empty text. Unlike other readers this one never drops a
row and never lets one swallow the rest: a quote that nothing closes costs its own line alone.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

from ray_job.inputs.formats.text.records import Record
from ray_job.inputs.source import malformed

MAX_ROW_BYTES = 16 * 2**20  # of a row over several lines
_UNCLOSED = "a quote is opened and never closed; close it, or double it where it is part of the text"
_BODY = '(?:[^"]++|"")*+'  # of a quoted field


def join_lines(lines: Iterable[Record], delimiter: str, max_bytes: int) -> Iterator[Record]:
    """The rows that lines make up; a blank line is none.

    Args:
        lines: all of them, blank ones too, from the beginning of a row on.
        delimiter: between fields, one ASCII character.
        max_bytes: of a row over several lines; one that is longer counts as never closed.
    """
    source = iter(lines)
    waiting: deque[Record] = deque()  # read ahead for a row that was none
    while (line := waiting.popleft() if waiting else next(source, None)) is not None:
        if line.content is None or not _is_open(line.content, False, delimiter):
            if line.content is None or line.content.strip():
                yield line
            continue
        held, is_open = [line], True
        while is_open and held[-1].end - line.start <= max_bytes:
            further = waiting.popleft() if waiting else next(source, None)
            if further is None:
                break
            held.append(further)
            if further.content is None:
                break
            is_open = _is_open(further.content, True, delimiter)
        if is_open:
            yield replace(line, content=None, problem=_UNCLOSED)
            waiting.extendleft(reversed(held[1:]))
        else:
            yield replace(line, end=held[-1].end, content=_joined(held))


def split_fields(row: str, delimiter: str) -> list[str | None]:
    """The fields of a row.

    Raises:
        RowError: something stands between a closing quote and the next delimiter.
    """
    pattern = _field(delimiter)
    fields: list[str | None] = []
    place = 0
    while True:
        match = pattern.match(row, place)
        if match is None:
            raise malformed(f"field {len(fields) + 1}: a quote within a quoted text is not doubled")
        quoted, plain = match.groups()
        fields.append(quoted.replace('""', '"') if quoted is not None else plain or None)
        place = match.end()
        if place == len(row):
            return fields
        place += 1


def _joined(lines: Sequence[Record]) -> bytes:
    """The lines with the newlines that were between them."""
    texts = [line.content or b"" for line in lines]
    ends = [
        b"\r\n" if line.end - line.start - len(text) == 2 else b"\n" for line, text in zip(lines, texts, strict=True)
    ]
    return b"".join(text + end for text, end in zip(texts, ends, strict=True)).removesuffix(ends[-1])


def _is_open(line: bytes, is_within: bool, delimiter: str) -> bool:
    """Whether a quoted field goes on behind a line.

    Args:
        line: without its newline.
        is_within: a quoted field goes on in it.
        delimiter: between fields.
    """
    if b'"' not in line:
        return is_within
    starting, going_on = _open_patterns(delimiter)
    return (going_on if is_within else starting).fullmatch(line) is not None


@lru_cache
def _field(delimiter: str) -> re.Pattern[str]:
    end = re.escape(delimiter)
    return re.compile(rf'(?:"({_BODY})"|((?!")[^{end}]*+))(?={end}|\Z)', re.DOTALL)


@lru_cache
def _open_patterns(delimiter: str) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    end = re.escape(delimiter)
    fields = rf'(?:(?:"{_BODY}"[^{end}]*+|(?!")[^{end}]*+){end})*+"{_BODY}'
    starting, going_on = fields, rf'{_BODY}(?:"[^{end}]*+{end}{fields})?+'
    return re.compile(starting.encode(), re.DOTALL), re.compile(going_on.encode(), re.DOTALL)
