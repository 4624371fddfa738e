"""The pool of spans against a plain line of taken and free places."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_job.engine.spans import Span, SpanPool


def holes(taken: list[bool]) -> list[int]:
    """Lengths of the free stretches, in order."""
    text = "".join("x" if each else "." for each in taken)
    return [len(hole) for hole in text.split("x") if hole]


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), capacity=st.integers(1, 60))
def test_spans_never_overlap_and_free_places_are_found_again(seed: int, capacity: int) -> None:
    rng, pool, taken = random.Random(seed), SpanPool(capacity), [False] * capacity
    spans: list[Span] = []
    for _ in range(60):
        need = rng.randint(1, 12)
        assert [pool.has_hole(size) for size in range(1, capacity + 2)] == [
            max(holes(taken), default=0) >= size for size in range(1, capacity + 2)
        ]
        action = rng.choice(["take", "take", "shrink", "free"])
        if action == "take" and pool.has_hole(need):
            span = pool.allocate(need)
            places = range(span.start, span.start + need)
            text = "".join("x" if each else "." for each in taken)
            assert span.start == text.index("." * need), "the first hole that is large enough"
            assert (span.capacity, span.filled, span.readers) == (need, 0, 1)
            for place in places:
                taken[place] = True
            spans.append(span)
        elif action == "shrink" and spans:
            span = rng.choice(spans)
            kept = rng.randint(1, span.capacity)
            for place in range(span.start + kept, span.start + span.capacity):
                taken[place] = False
            pool.shrink(span, kept)
            assert span.capacity == kept
        elif action == "free" and spans:
            span = spans.pop(rng.randrange(len(spans)))
            for place in range(span.start, span.start + span.capacity):
                taken[place] = False
            span.readers = 0
            pool.release(span)
        assert pool.used == sum(taken)


def test_what_is_read_is_not_released() -> None:
    pool = SpanPool(10)
    with pytest.raises(AssertionError):
        pool.release(pool.allocate(3))
