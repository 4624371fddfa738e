"""Pieces of files, some rows each, put together into splits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar


class Piece(Protocol):
    """Neighbouring rows of one file."""

    @property
    def num_rows(self) -> int:
        """At least one."""
        ...


P = TypeVar("P", bound=Piece)


def grouped(pieces: Iterable[P], max_rows: int, limit: int | None) -> Iterator[list[P]]:
    """The pieces in order, beside each other, in groups of `max_rows` rows at most.

    All of them, or so many that they have at least `limit` rows; none beyond is asked for before the last is full.
    """
    group: list[P] = []
    num_rows = num_before = 0
    for piece in pieces:
        if group and num_rows + piece.num_rows > max_rows:
            yield group
            group, num_rows = [], 0
        if limit is not None and num_before >= limit:
            break
        group.append(piece)
        num_rows += piece.num_rows
        num_before += piece.num_rows
    if group:
        yield group
