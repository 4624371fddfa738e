"""Keeps room for the end of an answer: `close_at_limit`.

A way to end is searched for greedily: what is forced, else closing brackets and quotes, else the shortest token; and
broadly where that does not end. Far from the limit nothing is restricted. Nearer than one token can lengthen that way,
each token that may come next is tried out, and goes where the way behind it no longer fits.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from ray_job.spec import StructuredOutputs

_MOST_TRIED = 128  # tokens, before one is chosen; where more are allowed, most are plain text inside a text
_MOST_OPENED = 3  # parts that one token opens
_ANY_VALUE = 6  # tokens of a name with a value
_FEW_STEPS, _MOST_STEPS = 200, 2000  # of a greedy search
_MOST_RESTS = 4  # of a way that are tried again
_MOST_PLACES = 300  # that a broad search looks at
_OUTSIDE = [re.compile(each) for each in (rb'"{0,2}[}\]]+', rb'""', rb'"', rb",", rb"0", rb"[1-9]")]
_INSIDE_TEXT = [re.compile(each) for each in (rb'"[}\]]+', rb'"')]
_LETTERS = (b"z", b"q", b"K")  # allowed together inside a text alone
_LAST = re.compile(rb"[{\[\\.eE+-]")
_STRUCTURAL = re.compile(rb'["\\{}\[\],:]')
_LEAST = re.compile(r"\{(\d+)")


class Follower(Protocol):
    """What a search needs of a matcher."""

    @property
    def is_complete(self) -> bool: ...

    @property
    def may_end(self) -> bool: ...

    def forced_ids(self) -> list[int]: ...

    def take(self, token_id: int) -> None: ...

    def copy(self) -> Self: ...

    def ends_by(self, token_ids: Sequence[int]) -> bool: ...


class Endings:
    """Finds ways to end an answer.

    Args:
        by_bytes: ids by what they write.
        stop_ids: ids that end an answer.
        allowed: the mask of a matcher's next token.
    """

    def __init__(
        self,
        by_bytes: Mapping[bytes, int],
        stop_ids: Collection[int],
        allowed: Callable[[Follower], npt.NDArray[np.int32]],
    ) -> None:
        self._allowed = allowed
        self._stop_id = min(stop_ids)
        self.stop_ids = frozenset(stop_ids)
        self._outside, self._inside_text = (_ranked(by_bytes, order) for order in (_OUTSIDE, _INSIDE_TEXT))
        self._first_byte = np.zeros(max(by_bytes.values()) + 1, np.uint8)
        for data, token_id in by_bytes.items():
            self._first_byte[token_id] = data[0]
        self._letters = [by_bytes[letter] for letter in _LETTERS if letter in by_bytes]
        common = sorted(by_bytes.items(), key=lambda item: (not _is_text(item[0]), item[1]))
        self._common = np.array([token_id for _, token_id in common])
        self.plain = frozenset(token_id for data, token_id in common if not _STRUCTURAL.search(data))

    def way(self, matcher: Follower, most: int) -> list[int] | None:
        """Ids that end the answer, the stop id included where one is needed; None where none of `most` were found."""
        for search, limit in ((self.greedy, _FEW_STEPS), (self._broad, most), (self.greedy, _MOST_STEPS)):
            if (found := search(matcher, min(most, limit))) is not None:
                return found
        return None

    def greedy(self, matcher: Follower, most: int) -> list[int] | None:
        """By the token at each place that as a rule leads nearest to the end."""
        matcher, way = matcher.copy(), list[int]()
        while len(way) <= most:
            if matcher.is_complete:
                return way if len(way) <= most else None
            if matcher.may_end:
                return [*way, self._stop_id] if len(way) < most else None
            try:
                for token_id in matcher.forced_ids() or [self._nearest(matcher)]:
                    matcher.take(token_id)
                    way.append(token_id)
            except (ValueError, RuntimeError):  # it breaks on the way
                return None
        return None

    def _broad(self, matcher: Follower, most: int) -> list[int] | None:
        """By one token for each first byte, from places at which other tokens are allowed than at those before."""
        places, seen = deque([(matcher.copy(), list[int]())]), set[bytes]()
        while places and len(seen) < _MOST_PLACES:
            matcher, way = places.popleft()
            if matcher.is_complete or matcher.may_end:
                way = way if matcher.is_complete else [*way, self._stop_id]
                return way if len(way) <= most else None
            try:
                if forced := matcher.forced_ids():
                    steps = [forced]
                else:
                    mask_W = self._allowed(matcher)
                    is_new = mask_W.tobytes() not in seen
                    seen.add(mask_W.tobytes())
                    steps = [[token_id] for token_id in self._of_each_byte(mask_W)] if is_new else []
                for step in steps:
                    after = matcher.copy()
                    for token_id in step:
                        after.take(token_id)
                    places.append((after, [*way, *step]))
            except (ValueError, RuntimeError):  # it breaks here
                continue
        return None

    def _of_each_byte(self, mask_W: npt.NDArray[np.int32]) -> list[int]:
        allowed = self._outside[_bits(mask_W)[self._outside] == 1]
        _, firsts = np.unique(self._first_byte[allowed], return_index=True)
        found: list[int] = allowed[firsts].tolist()
        return found

    def common_of(self, mask_W: npt.NDArray[np.int32]) -> list[int]:
        """Ids of a mask that write text, those that the tokenizer learned first in front."""
        found: list[int] = self._common[_bits(mask_W)[self._common] == 1].tolist()
        return found

    def _nearest(self, matcher: Follower) -> int:
        bits = _bits(self._allowed(matcher))
        ranked = self._inside_text if bits[self._letters].all() else self._outside
        if not bits[ranked].any():
            raise ValueError("no token goes on")
        return int(ranked[bits[ranked].argmax()])


@dataclass(slots=True)
class Closing:
    """One answer's room.

    Args:
        endings: of its tokenizer.
        left: tokens that it may have yet.
        growth: tokens by which one token at most lengthens the way to its end.
        text_growth: the same for a token of plain text inside a text.
        way: to its end; not looked for again before `due` tokens are left.
        rests: what may be left of the way behind tokens that were taken since, those beside it included.
    """

    endings: Endings
    left: int
    growth: int
    text_growth: int
    way: list[int]
    due: int = 0
    rests: list[list[int]] = field(default_factory=list)

    def took(self, token_id: int) -> None:
        """A token is taken."""
        self.left -= 1
        before = self.rests or [self.way]
        along = [rest[1:] for rest in before if rest[:1] == [token_id]]
        # A token beside the way may stand in the place of its first, as a digit does, or come in addition.
        self.rests = (along or [rest[start:] for rest in before for start in (0, 1)])[:_MOST_RESTS]

    def restrict(self, matcher: Follower, mask_W: npt.NDArray[np.int32]) -> None:
        """Takes tokens out of a mask behind which no way to the end fits."""
        if self.left > self.due > 0:
            return
        rests = self.rests or [self.way]
        known = [rest for rest in rests if 0 < len(rest) <= self.left and matcher.ends_by(rest)]
        self.way = known[0] if known else self.endings.way(matcher, self.left) or []
        self.rests = []
        room = self.left - len(self.way) - 1
        if self.way and room > self.growth:
            self.due = self.left - room // (self.growth + 1)
        elif self.way:
            self._try_out(matcher, mask_W)

    def _try_out(self, matcher: Follower, mask_W: npt.NDArray[np.int32]) -> None:
        endings = self.endings
        ids = endings.common_of(mask_W)
        is_text = len(ids) > _MOST_TRIED
        kept = [token_id for token_id in endings.stop_ids if matcher.may_end]
        if is_text and self.left - len(self.way) > self.text_growth:
            kept += [token_id for token_id in ids if token_id in endings.plain]
            ids = [token_id for token_id in ids if token_id not in endings.plain]
        kept += self.way[:1]
        kept += [token_id for token_id in ids[:_MOST_TRIED] if self._fits(matcher, token_id, is_text)]
        bits = np.zeros(len(mask_W) * 32, np.uint8)
        bits[kept] = 1
        mask_W &= np.packbits(bits, bitorder="little").view(np.int32)

    def _fits(self, matcher: Follower, token_id: int, is_text: bool) -> bool:
        after = matcher.copy()
        try:
            after.take(token_id)
        except ValueError:
            return False
        left = self.left - 1
        rests = (self.way[start:] for start in (0, 1) if len(self.way) - start <= left)
        if any(after.ends_by(rest) for rest in rests):
            return True
        return not is_text and self.endings.greedy(after, left) is not None


def text_growth_of(form: StructuredOutputs) -> int:
    """Tokens by which plain text inside a text lengthens the way to its end: a pattern's rest, a character's bytes."""
    return 4 + max(map(_longest, _of_keyword(form.json_schema, "pattern", str)), default=0)


def growth_of(form: StructuredOutputs, longest_part: int) -> int:
    """Tokens by which any one token lengthens the way to the end: some parts that it opens, at most.

    Args:
        form: the form.
        longest_part: tokens of the longest part that an answer need not hold, as shortly as it can be written.
    """
    if form.choice is not None:
        return max(len(text.encode()) for text in form.choice)
    if form.regex is not None:
        return _longest(form.regex)
    values = (each for values in _of_keyword(form.json_schema, "enum", list) for each in values)
    longest_value = max((len(json.dumps(each)) for each in values), default=0)
    return _MOST_OPENED * max(longest_part, _ANY_VALUE) + longest_value + text_growth_of(form)


def _of_keyword(schema: object, keyword: str, kind: type[Any]) -> Iterator[Any]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == keyword and isinstance(value, kind):
                yield value
            yield from _of_keyword(value, keyword, kind)
    elif isinstance(schema, list):
        for each in schema:
            yield from _of_keyword(each, keyword, kind)


def _longest(regex: str) -> int:
    """Characters that its longest alternative has at least: no more than it spells, as often as it says."""
    return len(regex) * prod(max(1, int(least)) for least in _LEAST.findall(regex))


def _ranked(by_bytes: Mapping[bytes, int], order: Sequence[re.Pattern[bytes]]) -> npt.NDArray[np.int64]:
    ranked = sorted(by_bytes.items(), key=lambda item: (_rank(item[0], order), item[1]))
    return np.array([token_id for _, token_id in ranked])


def _rank(data: bytes, order: Sequence[re.Pattern[bytes]]) -> tuple[int, int]:
    """How near the end a token leads, as a rule."""
    for rank, pattern in enumerate(order):
        if pattern.fullmatch(data):
            return rank, -len(data)
    return len(order) + bool(_LAST.match(data)) + 2 * (not _is_text(data)), len(data)


def _is_text(data: bytes) -> bool:
    try:
        return bool(data.decode())
    except UnicodeDecodeError:
        return False


def _bits(mask_W: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    return np.unpackbits(mask_W.view(np.uint8), bitorder="little")
