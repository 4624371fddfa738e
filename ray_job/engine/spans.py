"""Contiguous stretches of the KV pool: who holds which tokens. No tensors here, only numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Span:
    """`capacity` tokens of the pool from `start` on. Its first `filled` tokens hold keys and never change."""

    start: int
    capacity: int
    filled: int = 0
    readers: int = 1  # the row that owns it, or its kept prompt, and every row that shares its tokens


@dataclass(frozen=True, slots=True)
class Piece:
    """The first `length` tokens of a span, as one row reads them."""

    span: Span
    length: int


class SpanPool:
    """First-fit over a line of `capacity` tokens."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self._holes: list[tuple[int, int]] = [(0, capacity)]  # (start, length), by start, never touching

    def has_hole(self, need: int) -> bool:
        """Whether `need` tokens lie free side by side."""
        return any(length >= need for _, length in self._holes)

    def allocate(self, need: int) -> Span:
        """A new span; there must be a hole for it."""
        assert need > 0
        index = next(index for index, (_, length) in enumerate(self._holes) if length >= need)
        start, length = self._holes[index]
        self._holes[index : index + 1] = [(start + need, length - need)] if length > need else []
        self.used += need
        return Span(start, need)

    def shrink(self, span: Span, capacity: int) -> None:
        """Gives back a span's tail."""
        assert 0 < capacity <= span.capacity
        self._free(span.start + capacity, span.capacity - capacity)
        span.capacity = capacity

    def release(self, span: Span) -> None:
        """Gives back a span that nobody reads."""
        assert span.readers == 0
        self._free(span.start, span.capacity)

    def _free(self, start: int, length: int) -> None:
        if length == 0:
            return
        self.used -= length
        merged: list[tuple[int, int]] = []
        for hole in sorted([*self._holes, (start, length)]):
            if merged and merged[-1][0] + merged[-1][1] == hole[0]:
                merged[-1] = (merged[-1][0], merged[-1][1] + hole[1])
            else:
                merged.append(hole)
        self._holes = merged
