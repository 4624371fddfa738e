"""Which samples share a static batch: alike in length, within a budget of rows and tokens. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DEFAULT_MAX_TOKENS = 65536


@dataclass(frozen=True, slots=True)
class SampleSize:
    """What a sample takes in a batch."""

    prompt_tokens: int
    max_new_tokens: int


def batch_rows(sizes: Sequence[SampleSize], max_rows: int, max_tokens: int) -> int:
    """How many samples from the end of a list sorted by length to batch; at least one.

    A batch takes rows × (longest prompt + longest answer) tokens, the padding included.
    """
    width, new_tokens, num_rows = sizes[-1].prompt_tokens, 0, 0
    for size in reversed(sizes[-max_rows:]):
        new_tokens = max(new_tokens, size.max_new_tokens)
        if num_rows and (num_rows + 1) * (width + new_tokens) > max_tokens:
            break
        num_rows += 1
    return num_rows


def num_batches(sizes: Sequence[SampleSize], max_rows: int, max_tokens: int) -> int:
    """How many batches all the samples make when they are batched together."""
    left = sorted(sizes, key=lambda size: (size.prompt_tokens, size.max_new_tokens))
    count = 0
    while left:
        del left[-batch_rows(left[-max_rows:], max_rows, max_tokens) :]
        count += 1
    return count
