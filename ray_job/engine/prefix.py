"""Finds the longest prefix that a prompt has in common with one whose keys are in the pool.

Tokens are compared one by one and pictures by the digest of all their bytes: no hash stands for a prompt, so no
collision can hand a row another row's keys.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeAlias

from ray_job.engine.row import R, Row
from ray_job.engine.spans import Piece

_Key: TypeAlias = tuple[bytes, tuple[bytes, ...], bool]


class PrefixIndex(Generic[R]):
    """Rows whose prompt's keys are, or will be, in the pool.

    `min_shared` is the shortest prefix worth sharing, in tokens; None finds nothing.
    """

    def __init__(self, min_shared: int | None) -> None:
        self._min_shared = min_shared
        self._rows: dict[_Key, OrderedDict[R, None]] = {}

    def is_worth(self, num_tokens: int) -> bool:
        """Whether a prefix of so many tokens is worth keeping."""
        return self._min_shared is not None and num_tokens >= self._min_shared

    def add(self, row: R) -> None:
        """Offers a row's prompt to later ones."""
        key = self._key(row)
        if key is not None:
            self._rows.setdefault(key, OrderedDict())[row] = None

    def remove(self, row: R) -> None:
        """Takes the offer back; a row that was never offered is no error."""
        key = self._key(row)
        bucket = self._rows.get(key) if key is not None else None
        if key is not None and bucket is not None:
            bucket.pop(row, None)
            if not bucket:
                del self._rows[key]

    def longest(self, row: R) -> list[Piece]:
        """The longest prefix `row` can read, as pieces in order. Its last token is always its own to compute."""
        key = self._key(row)
        if key is None:
            return []
        best, best_len = None, 0
        for other in self._rows.get(key, ()):
            common = min(row.prompt.common(other.prompt), row.num_tokens - 1)
            if common > best_len:
                best, best_len = other, common
        if best is None:
            return []
        best_len = row.prompt.layout.common(best.prompt.layout, best_len)
        return _head(best, best_len) if self.is_worth(best_len) else []

    def _key(self, row: R) -> _Key | None:
        """Rows that share enough have this in common: the first tokens, their pictures, the rotary factors."""
        if self._min_shared is None or len(row.prompt) < self._min_shared:
            return None
        first_L = row.prompt.ids_L[: self._min_shared]
        num_pictures = max(0, -int(first_L.min()))
        return first_L.tobytes(), row.prompt.digests[:num_pictures], row.is_long


def _head(row: Row, length: int) -> list[Piece]:
    """The first `length` tokens of a row as pieces of its spans."""
    assert row.span is not None
    pieces = []
    for piece in (*row.shared, Piece(row.span, len(row.prompt) - row.num_shared)):
        if length > 0:
            pieces.append(Piece(piece.span, min(piece.length, length)))
            length -= pieces[-1].length
    return pieces
