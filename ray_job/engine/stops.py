"""Finds the token at which an answer's text first holds a stop string, without decoding the whole answer each time.

A tokenizer's decoder joins what it is given: bytes that are tokens of their own make a character only together, the
first token loses its space, the last one its word's end. So the end of an answer, decoded alone, may read otherwise
than in the whole. `StopSearch` decodes a window of the newest tokens, and shortens it only where the shorter one has
been seen to read the same. The window is as long as the stop strings need, so a token costs the same anywhere in an
answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_job.engine.interface import Detokenize

_UNDECODED = "\ufffd"  # what decoders give for bytes that are no character, or none yet
_BYTES_PER_CHARACTER = 4  # at most, in UTF-8
_MARGIN = 8  # characters at the end of a text that a later token may still change, such as a space before a full stop


class StopSearch:
    """Follows one answer, token by token.

    Characters that are incomplete (U+FFFD at the end of the text) belong to no stop string until they are complete or
    the answer has ended.

    Args:
        stops: strings to find; none of them empty.
        detokenize: from ids to text.
    """

    def __init__(self, stops: Sequence[str], detokenize: Detokenize) -> None:
        self._stops = stops
        self._detokenize = detokenize
        self._reach = max(map(len, stops)) + _MARGIN  # characters that must read as in the whole text
        self._window: list[int] = []  # ids whose text ends as the answer's does
        self._first = 0  # character of the window's text from which on it reads as the answer's
        self._num_complete = 0  # ids of the window at its last end without incomplete characters
        self._limit = 2 * self._shortest  # ids of the window at which a shorter one is tried
        self._text = ""  # the window's
        self._ends_without_text = False  # whether the window's last token has no text of its own

    def ends_with(self, token_id: int) -> bool:
        """Takes the answer's next token: whether its text may hold a stop string now, for the first time.

        Never false where it does; where it is true, `cut` on the whole text tells.
        """
        self._window.append(token_id)
        text = self._detokenize(self._window)
        had_no_text, self._ends_without_text = self._ends_without_text, self._has_no_text(token_id, text)
        if had_no_text and self._ends_without_text:  # of several such tokens in a row, one is enough
            self._window.pop()
            return False
        self._text = text
        complete = text.rstrip(_UNDECODED)
        if any(complete.find(stop, self._first) >= 0 for stop in self._stops):
            return True
        if len(complete) == len(text):
            self._num_complete = len(self._window)
        num_incomplete = len(self._window) - self._num_complete
        if len(self._window) >= self._limit and not 0 < num_incomplete <= _BYTES_PER_CHARACTER:
            self._shorten(text)
            self._text = self._detokenize(self._window)
        return False

    def _has_no_text(self, token_id: int, text: str) -> bool:
        """Whether the newest token is one that decoding skips; `text` is the window's with it."""
        # Alone, a space might vanish too: at the beginning of a text.
        return text == self._text and not self._detokenize([token_id, token_id])

    @property
    def _shortest(self) -> int:
        """Fewest ids of a window."""
        return self._reach + _BYTES_PER_CHARACTER

    def _shorten(self, text: str) -> None:
        """Replaces the window, which reads `text`, by the shortest one found that ends alike."""
        if not self._shorten_undecodable(text):
            size = self._shortest
            while size + _BYTES_PER_CHARACTER < len(self._window) and not self._keep_last(size, text):
                size *= 2
        self._limit = max(2 * self._shortest, len(self._window) * 5 // 4)

    def _keep_last(self, size: int, text: str) -> bool:
        """Keeps about `size` ids, from the start of a character on; False where none of those windows ends alike."""
        for start in range(len(self._window) - size, len(self._window) - size - _BYTES_PER_CHARACTER, -1):
            shorter = self._detokenize(self._window[start:])
            complete = shorter.rstrip(_UNDECODED)
            end_len = self._reach + len(shorter) - len(complete)
            if len(complete) >= self._reach and shorter[-end_len:] == text[-end_len:]:
                self._first = len(shorter) - end_len
                self._num_complete = max(0, self._num_complete - start)
                del self._window[:start]
                return True
        return False

    def _shorten_undecodable(self, text: str) -> bool:
        """Keeps the beginning and the end of a long run of bytes that are no characters and never will be.

        Its beginning stays, since such a run is undecodable as a whole: without it, the rest might read as characters.
        """
        run = self._window[self._num_complete :]
        size = self._shortest
        while 2 * size < len(run):
            shorter = [*run[:size], *run[-size:]]
            found = self._detokenize(shorter)
            is_never_text = len(self._detokenize(run[:size])) >= _BYTES_PER_CHARACTER
            if is_never_text and len(found) >= self._reach and not found.strip(_UNDECODED) and text.endswith(found):
                self._window, self._first, self._num_complete = shorter, 0, 0
                return True
            size *= 2
        return False


def cut(text: str, stops: Sequence[str]) -> str | None:
    """The text before the first stop string in it; None where there is none."""
    starts = [start for stop in stops if (start := text.find(stop)) >= 0]
    return text[: min(starts)] if starts else None
