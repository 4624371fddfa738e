"""Prefixes: what two prompts have in common, and which of the rows offered has most of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_job.engine.prefix import PrefixIndex
from ray_job.engine.row import Prompt, Row
from ray_job.engine.spans import Piece, Span

IDS = st.lists(st.sampled_from([7, 8, -1, -2]), min_size=1, max_size=12)
DIGESTS = st.lists(st.sampled_from([b"cat", b"dog"]), min_size=2, max_size=2)


def keys(ids: list[int], digests: list[bytes]) -> list[object]:
    return [digests[-token - 1] if token < 0 else token for token in ids]


@given(IDS, IDS, DIGESTS, DIGESTS)
def test_what_two_prompts_have_in_common(
    one: list[int], two: list[int], first: list[bytes], second: list[bytes]
) -> None:
    """Placeholders are the same where their numbers and their pictures are."""
    common = 0
    pairs = (list(zip(ids, keys(ids, digests), strict=True)) for ids, digests in ((one, first), (two, second)))
    for mine, its in zip(*pairs, strict=False):
        if mine != its:
            break
        common += 1
    assert Prompt(one, first).common(Prompt(two, second)) == common


def row(ids: list[int], *digests: bytes, start: int = 0, is_long: bool = False) -> Row:
    span = Span(start, len(ids) + 5)
    return Row(prompt=Prompt(ids, digests), num_tokens=len(ids), max_tokens=len(ids) + 5, span=span, is_long=is_long)


def test_the_longest_prefix_of_several_is_found() -> None:
    index = PrefixIndex[Row](2)
    offered = [row([1, 2, 3, 9]), row([1, 2, 3, 4, 5, 9]), row([1, 2, 8]), row([5, 2, 3, 4, 5, 6])]
    for each in offered:
        index.add(each)
    assert offered[1].span is not None
    assert index.longest(row([1, 2, 3, 4, 5, 6])) == [Piece(offered[1].span, 5)]
    assert index.longest(row([1, 3])) == []
    index.remove(offered[1])
    assert offered[0].span is not None
    assert index.longest(row([1, 2, 3, 4, 5, 6])) == [Piece(offered[0].span, 3)]
    index.remove(offered[1])
    index.remove(offered[0])
    index.remove(offered[2])
    assert index.longest(row([1, 2, 3, 4, 5, 6])) == []


def test_of_equally_long_ones_the_first_offered_is_taken() -> None:
    index = PrefixIndex[Row](2)
    offered = [row([1, 2, 3, 4]), row([1, 2, 3, 5])]
    for each in offered:
        index.add(each)
    assert offered[0].span is not None
    assert index.longest(row([1, 2, 3, 6])) == [Piece(offered[0].span, 3)]


def test_the_last_token_is_always_the_rows_own() -> None:
    index = PrefixIndex[Row](2)
    index.add(row([1, 2, 3]))
    (piece,) = index.longest(row([1, 2, 3]))
    assert piece.length == 2
    assert index.longest(row([1, 2])) == [], "one token is less than what is worth sharing"


@pytest.mark.parametrize("least", [1, 2, 3, 4, None])
def test_only_what_is_long_enough_is_shared(least: int | None) -> None:
    index = PrefixIndex[Row](least)
    index.add(row([1, 2, 3, 9]))
    assert [piece.length for piece in index.longest(row([1, 2, 3, 8]))] == ([3] if least in (1, 2, 3) else [])
    assert [index.is_worth(count) for count in range(5)] == [least is not None and count >= least for count in range(5)]


def test_one_token_may_be_worth_sharing() -> None:
    index = PrefixIndex[Row](1)
    index.add(row([1, 9]))
    assert [piece.length for piece in index.longest(row([1, 8]))] == [1]
    assert index.longest(row([2, 9])) == []


def test_other_pictures_or_factors_share_nothing_after_them() -> None:
    index = PrefixIndex[Row](3)
    index.add(row([1, -1, -1, 5], b"cat"))
    assert [piece.length for piece in index.longest(row([1, -1, -1, 6], b"cat"))] == [3]
    assert index.longest(row([1, -1, -1, 6], b"dog")) == []
    assert index.longest(row([1, -1, -1, 6], b"cat", is_long=True)) == []
    index.add(row([1, 2, 3, -1, 5], b"cat"))
    assert [piece.length for piece in index.longest(row([1, 2, 3, -1, 5], b"dog"))] == [3]


def test_a_prefix_that_was_itself_shared_is_read_where_it_lies() -> None:
    index = PrefixIndex[Row](2)
    first, second = row([1, 2, 3, 4]), row([1, 2, 3, 5, 6, 7], start=50)
    assert first.span is not None
    second.shared = [Piece(first.span, 3)]
    index.add(second)
    assert second.span is not None
    assert index.longest(row([1, 2, 3, 5, 6, 8])) == [Piece(first.span, 3), Piece(second.span, 2)]
    assert index.longest(row([1, 2, 3, 9])) == [Piece(first.span, 3)]
    assert index.longest(row([1, 2, 9])) == [Piece(first.span, 2)]
