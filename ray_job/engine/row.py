"""A row as the scheduler sees it, its prompt, and the chunk of it that a step computes. Plain Python, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ray_job.engine.layout import PromptLayout
from ray_job.engine.spans import Piece, Span


class Prompt:
    """A prompt's token ids, int32 with −k for picture k, its pictures' digests, and its layout; None: that of text."""

    __slots__ = ("digests", "ids_L", "layout")

    def __init__(
        self,
        input_ids: Sequence[int] | npt.NDArray[np.int32],
        digests: Sequence[bytes],
        layout: PromptLayout | None = None,
    ) -> None:
        self.ids_L: npt.NDArray[np.int32] = np.asarray(input_ids, dtype=np.int32)
        self.digests = tuple(digests)
        self.layout = layout or PromptLayout.in_order(len(self.ids_L))

    def __len__(self) -> int:
        return len(self.ids_L)

    def common(self, other: Prompt) -> int:
        """How many leading tokens are the same, pictures included."""
        shortest = min(len(self), len(other))
        differs_L = self.ids_L[:shortest] != other.ids_L[:shortest]
        common = int(differs_L.argmax()) if differs_L.any() else shortest
        if self.digests != other.digests:
            for number, pair in enumerate(zip(self.digests, other.digests, strict=False), start=1):
                if pair[0] != pair[1]:
                    places = np.flatnonzero(self.ids_L[:common] == -number)
                    common = int(places[0]) if len(places) else common
        return common


@dataclass(eq=False, kw_only=True)
class Row:
    """One row on its way through. `num_tokens` counts prompt and answer so far and grows as it is answered."""

    prompt: Prompt
    max_tokens: int  # prompt and longest answer
    num_tokens: int
    is_long: bool = False  # which rotary factors its keys carry
    is_ready: bool = True  # False while features of its pictures are missing
    arrival: int = 0
    deadline: int = 0  # once so many rows were admitted, this one must be next
    is_waiting: bool = False
    num_computed: int = 0
    shared: list[Piece] = field(default_factory=list)
    span: Span | None = None

    @property
    def num_shared(self) -> int:
        """Leading tokens whose keys lie in other rows' spans."""
        return sum(piece.length for piece in self.shared)

    @property
    def num_missing(self) -> int:
        """Tokens known but not computed."""
        return self.num_tokens - self.num_computed

    @property
    def is_decoding(self) -> bool:
        """Whether only its newest token is left to compute."""
        return self.num_missing == 1 and self.num_computed >= len(self.prompt)

    def has_prefix(self, filled: Mapping[Span, int]) -> bool:
        """Whether the keys it shares are there; `filled` overrides what spans hold."""
        return all(piece.length <= filled.get(piece.span, piece.span.filled) for piece in self.shared)


R = TypeVar("R", bound=Row)
R_co = TypeVar("R_co", bound=Row, covariant=True)


@dataclass(frozen=True, eq=False)
class Chunk(Generic[R_co]):
    """Tokens `start` to `end` of a row, computed in one step."""

    row: R_co
    start: int
    end: int

    @property
    def is_decode(self) -> bool:
        """Whether it is an answer's newest token alone."""
        return self.end - self.start == 1 and self.start >= len(self.row.prompt) and self.needs_logits

    @property
    def needs_logits(self) -> bool:
        """Whether the row's next token follows from it."""
        return self.end == self.row.num_tokens
