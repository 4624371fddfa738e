"""Where a prompt's tokens stand, and which of them see later ones. Plain numbers, no torch.

Shapes: A axes of positions, L tokens of a prompt or of a stretch of it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class PromptLayout:
    """Positions and blocks of a prompt's tokens.

    A model makes it of the prompt's ids and pictures alone, so equal prompts have equal layouts.
    """

    positions_AL: npt.NDArray[np.int64]  # on each of the model's axes
    offset: int = 0  # a later token's position, on every axis, is its index plus this
    blocks: tuple[tuple[int, int], ...] = ()
    """Stretches [start, end), ascending, apart, in the prompt. A block's tokens see one another, later ones and those
    before a sliding window included."""

    @classmethod
    def in_order(cls, num_tokens: int, num_axes: int = 1) -> PromptLayout:
        """Of text: positions count from 0, and no token sees a later one."""
        order_L = np.arange(num_tokens)
        return cls(order_L[None] if num_axes == 1 else np.tile(order_L, (num_axes, 1)))

    def check(self, num_axes: int, num_tokens: int) -> None:
        """Raises ValueError unless it is a layout of a prompt of so many tokens."""
        if self.positions_AL.shape != (num_axes, num_tokens):
            raise ValueError(
                f"positions of a prompt of {num_tokens} tokens on {num_axes} axes have shape {self.positions_AL.shape}"
            )
        edges = [edge for block in self.blocks for edge in block]
        if any(start >= end for start, end in self.blocks) or edges != sorted(edges):
            raise ValueError(f"blocks of tokens that see one another are not in order and apart: {self.blocks}")
        if edges and (edges[0] < 0 or edges[-1] > num_tokens):
            raise ValueError(f"blocks {self.blocks} reach beyond the prompt's {num_tokens} tokens")

    def positions(self, start: int, end: int) -> npt.NDArray[np.int64]:
        """(A, L) of tokens `start` to `end`, the answer's included."""
        num_axes, num_tokens = self.positions_AL.shape
        if end <= num_tokens:
            return self.positions_AL[:, start:end]
        later_L = np.arange(max(start, num_tokens), end) + self.offset
        return np.concatenate((self.positions_AL[:, start:], np.tile(later_L, (num_axes, 1))), axis=1)

    def whole(self, end: int) -> int:
        """The last place up to `end` that is not within a block."""
        return next((first for first, last in self.blocks if first < end < last), end)

    def block_end(self, start: int) -> int:
        """Where the block that begins at `start` ends; there is one."""
        return next(last for first, last in self.blocks if first == start)

    def has_blocks(self, start: int, end: int) -> bool:
        """Whether any of tokens `start` to `end`, no block of which is cut, sees a later one."""
        return any(first < end and start < last and last - first > 1 for first, last in self.blocks)

    def common(self, other: PromptLayout, num_tokens: int) -> int:
        """Of leading tokens that two prompts have in common, how many have the same keys: none of a block cut short."""
        pairs = itertools.zip_longest(self.blocks, other.blocks)
        unlike = next((pair for pair in pairs if pair[0] != pair[1]), ())
        common = self.whole(min([num_tokens, *(block[0] for block in unlike if block)]))
        differs_L = (self.positions_AL[:, :common] != other.positions_AL[:, :common]).any(axis=0)
        return self.whole(int(differs_L.argmax())) if differs_L.any() else common

    def first_seen(self, index: int, sliding_window: int | None) -> int:
        """The first token that token `index` sees."""
        if sliding_window is None:
            return 0
        first = max(0, index - sliding_window)
        return min([first, *(start for start, end in self.blocks if start <= index < end)])

    def seen(self, start: int, end: int, sliding_window: int | None) -> tuple[npt.NDArray[np.int64], ...]:
        """The first and the last token that each of tokens `start` to `end` sees, (L,) each; it sees all between."""
        last_L = np.arange(start, end)
        first_L = np.zeros_like(last_L) if sliding_window is None else np.maximum(0, last_L - sliding_window)
        for first, last in self.blocks:
            inside = slice(max(first - start, 0), max(last - start, 0))
            first_L[inside] = np.minimum(first_L[inside], first)
            last_L[inside] = last - 1
        return first_L, last_L
