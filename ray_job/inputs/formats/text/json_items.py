"""Objects of a JSON text that are not one to a line: items of an array, pretty-printed ones, ones behind each other.

Only brackets and quotes are looked at, so that an item is cut out without the rest of the file. Brackets and commas
around objects count as what separates them; anything else between two objects is an item that will fail by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ray_job.inputs.formats.text.records import CHUNK_BYTES, Record

CUT = "the file ends inside its array; it was cut short, and what else it held is not there"
UNCLOSED = "holds a text that is not closed, so that nothing behind it can be told apart; repair the file"
ENDED = "the file ends inside it; it was cut short"
_SEPARATORS = re.compile(rb"(?:\xef\xbb\xbf)?[\s,\[\]\x1e]*+")
_JUNK = re.compile(rb"[^\n,{\[\]]*+")
_TO_BRACKET = re.compile(rb'[^"{}\[\]]*+(?:"(?:[^"\\\n]++|\\[^\n])*+"[^"{}\[\]]*+)*+')
_IN_TEXT = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_SPACE = re.compile(rb"\s*+")


def iter_items(stream: Any, max_bytes: int, *, start: int = 0, first_number: int = 1) -> Iterator[Record]:
    """The objects, from where the stream stands to its end.

    Where a text is not closed nothing behind it can be told apart: all that is the last item.

    Args:
        stream: has `read(size) -> bytes`.
        max_bytes: a longer item is passed over without being held.
        start: offset of the stream's position in the file.
        first_number: number of the item that begins there.
    """
    window = _Window(stream, start, max_bytes)
    number, num_open = first_number, 0
    problem: str | None = None
    while True:
        num_open += window.skip(_SEPARATORS)
        if not window.fill():
            break
        first = window.begin_item()
        problem = window.skip_object() if window.peek() == b"{" else None
        if window.offset == first:
            window.skip(_JUNK)
        content, end = window.end_item()
        yield Record(number, first, end, content if problem is None else None, problem)
        number += 1
    if start == 0 and num_open > 0 and problem is None:
        yield Record(number, window.offset, window.offset, None, CUT)


class _Window:
    """The part of a stream that is looked at; what lies before the item in work is let go."""

    def __init__(self, stream: Any, offset: int, max_bytes: int) -> None:
        self._stream, self._max_bytes = stream, max_bytes
        self._data, self._place, self._base = b"", 0, offset
        self._item: int | None = None  # offset where the item in work begins
        self._is_long = False

    @property
    def offset(self) -> int:
        """Of the place in the file."""
        return self._base + self._place

    def peek(self) -> bytes:
        """The next byte; nothing at the end of what is loaded."""
        return self._data[self._place : self._place + 1]

    def fill(self) -> bool:
        """Whether there is a next byte, read if need be."""
        return self._place < len(self._data) or self._read()

    def skip(self, pattern: re.Pattern[bytes]) -> int:
        """Moves over all that matches, however much must be read; returns how many `[` more than `]` it was."""
        num_open = 0
        while self.fill():
            match = pattern.match(self._data, self._place)
            assert match is not None, "it matches nothing too"
            num_open += match[0].count(b"[") - match[0].count(b"]")
            self._place = match.end()
            if self._place < len(self._data):
                break
        return num_open

    def begin_item(self) -> int:
        """Holds what follows."""
        self._item, self._is_long = self.offset, False
        return self.offset

    def end_item(self) -> tuple[bytes | None, int]:
        """What was held, None where it is too long, and the offset behind it."""
        assert self._item is not None
        first, self._item = self._item - self._base, None
        is_long = self._is_long or self._place - first > self._max_bytes
        return None if is_long else self._data[first : self._place], self.offset

    def skip_object(self) -> str | None:
        """Moves behind the bracket that closes the one here, or to the end; then says why."""
        depth = 0
        while self.fill():
            match = _TO_BRACKET.match(self._data, self._place)
            assert match is not None, "it matches nothing too"
            self._place = match.end()
            bracket = self.peek()
            if bracket == b'"' and not self._skip_text():
                while self.fill():
                    self._place = len(self._data)
                return UNCLOSED
            if bracket in (b"{", b"[", b"}", b"]"):
                depth += 1 if bracket in b"{[" else -1
                self._place += 1
                if depth == 0:
                    return None
        return ENDED

    def _skip_text(self) -> bool:
        """Moves behind the quote that closes the one here, where what is loaded may end before.

        False where it closes none: behind a text over several lines, which is no JSON, must stand what follows a text.
        """
        has_newline = False
        self._place += 1
        while True:
            match = _IN_TEXT.match(self._data, self._place)
            assert match is not None, "it matches nothing too"
            has_newline = has_newline or b"\n" in match[0]
            self._place = match.end()
            left = len(self._data) - self._place
            if left > 1 or self.peek() not in (b"", b"\\"):
                break
            if not self._read():
                return True  # the file ends here, which parsing will say
        self._place += 1
        if not has_newline:
            return True
        self.skip(_SPACE)
        return not self.fill() or self.peek() in b",:}]"

    def _read(self) -> bool:
        chunk = self._stream.read(CHUNK_BYTES)
        keep = self._place if self._item is None else self._item - self._base
        if self._item is not None and (self._is_long or self._place - keep > self._max_bytes):
            self._is_long, keep = True, self._place
        self._base += keep
        self._place -= keep
        if self._is_long and self._item is not None:
            self._item = self._base
        self._data = self._data[keep:] + chunk
        return bool(chunk)
