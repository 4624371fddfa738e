"""Layouts of prompts: what tokens see, where a prompt may be cut, and what two of them have in common."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_job.engine.layout import PromptLayout

LENGTH = 12
EDGES = st.lists(st.integers(0, LENGTH), max_size=8, unique=True).map(sorted)
BLOCKS = EDGES.map(lambda edges: tuple(zip(edges[::2], edges[1::2], strict=False)))
WINDOWS = st.sampled_from([None, 0, 1, 4, 20])


def layout(*blocks: tuple[int, int], length: int = LENGTH) -> PromptLayout:
    return PromptLayout(np.arange(length)[None], blocks=blocks)


def sees(query: int, key: int, window: int | None, blocks: tuple[tuple[int, int], ...]) -> bool:
    if any(start <= query < end and start <= key < end for start, end in blocks):
        return True
    return key <= query and (window is None or query - key <= window)


@given(BLOCKS, WINDOWS)
def test_what_a_token_sees(blocks: tuple[tuple[int, int], ...], window: int | None) -> None:
    found = layout(*blocks)
    found.check(1, LENGTH)
    expected = [[key for key in range(LENGTH) if sees(query, key, window, blocks)] for query in range(LENGTH)]
    for start in range(LENGTH):
        firsts_L, lasts_L = found.seen(start, LENGTH, window)
        pairs = zip(firsts_L.tolist(), lasts_L.tolist(), strict=True)
        assert [list(range(first, last + 1)) for first, last in pairs] == expected[start:]
        assert found.first_seen(start, window) == expected[start][0]
        for end in range(start + 1, LENGTH + 1):
            if (found.whole(start), found.whole(end)) == (start, end):
                later = any(key > query for query in range(start, end) for key in expected[query])
                assert found.has_blocks(start, end) == later


@given(BLOCKS)
def test_a_block_is_not_cut(blocks: tuple[tuple[int, int], ...]) -> None:
    found = layout(*blocks)
    places = [place for place in range(LENGTH + 1) if not any(start < place < end for start, end in blocks)]
    for end in range(LENGTH + 1):
        assert found.whole(end) == max(place for place in places if place <= end)
    assert found.whole(LENGTH + 5) == LENGTH + 5, "an answer has no blocks"
    assert [found.block_end(start) for start, _ in blocks] == [end for _, end in blocks]


@pytest.mark.parametrize(
    ("one", "two", "common"),
    [
        ((), (), 8),
        (((2, 5),), ((2, 5),), 8),
        (((2, 10),), ((2, 10),), 2),  # it goes on after the common tokens
        (((2, 10),), ((2, 9),), 2),
        (((2, 10),), (), 2),
        ((), ((0, 12),), 0),  # one is a whole prompt that sees itself
        (((2, 5), (5, 9)), ((2, 5), (5, 9)), 5),
        (((2, 5), (8, 9)), ((2, 5), (9, 10)), 8),  # beyond what they have in common
        (((2, 5), (6, 8)), ((2, 5), (7, 8)), 6),
        (((2, 6),), ((4, 6),), 2),
    ],
)
def test_no_key_of_a_block_is_shared_but_with_the_whole_block(
    one: tuple[tuple[int, int], ...], two: tuple[tuple[int, int], ...], common: int
) -> None:
    assert layout(*one).common(layout(*two), 8) == common
    assert layout(*two).common(layout(*one), 8) == common


def test_keys_at_other_positions_are_not_shared() -> None:
    moved = PromptLayout(np.array([[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12]]))
    assert layout().common(moved, 8) == 4
    assert layout((2, 6)).common(PromptLayout(moved.positions_AL, blocks=((2, 6),)), 8) == 2


def test_positions_go_on_after_the_prompt() -> None:
    found = PromptLayout(np.array([[0, 1, 1], [0, 1, 2]]), offset=-1)
    assert found.positions(0, 2).tolist() == [[0, 1], [0, 1]]
    assert found.positions(1, 5).tolist() == [[1, 1, 2, 3], [1, 2, 2, 3]]
    assert found.positions(4, 6).tolist() == [[3, 4], [3, 4]]
    assert PromptLayout.in_order(3, 2).positions(0, 4).tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (layout(length=11), "12 tokens on 1 axes have shape (1, 11)"),
        (PromptLayout.in_order(12, 3), "have shape (3, 12)"),
        (layout((3, 3)), "not in order and apart: ((3, 3),)"),
        (layout((3, 6), (5, 7)), "not in order and apart"),
        (layout((5, 7), (1, 2)), "not in order and apart"),
        (layout((10, 13)), "reach beyond the prompt's 12 tokens"),
        (layout((-1, 3)), "reach beyond"),
    ],
)
def test_a_layout_that_is_none(wrong: PromptLayout, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        wrong.check(1, LENGTH)
