"""Rows known again by their ids, and ids that several rows have, without Ray."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_job.output import duplicates
from ray_job.output.duplicates import find_duplicates
from ray_job.output.manifest import Duplicates
from ray_job.output.matching import KnownRows, _bytes, hash_ids
from ray_job.storage.places import Location

from .conftest import FAILED, record, scan, write


def known(ids: list[str]) -> KnownRows:
    """Rows with these ids, numbered from 0."""
    hashes = hash_ids(pa.chunked_array([ids], pa.string()))
    order = np.lexsort((np.arange(len(ids)), hashes))
    return KnownRows(hashes[order], np.arange(len(ids))[order])


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcd")), st.lists(st.sampled_from("abcde")))
def test_an_id_is_known_as_often_as_it_occurred_and_first_come_first(before: list[str], now: list[str]) -> None:
    rows = known(before)
    hashes = hash_ids(pa.chunked_array([now], pa.string()))
    is_known = rows.has(hashes)
    assert is_known.tolist() == [row_id in before for row_id in now]
    found, numbers = rows.match(hashes[is_known], np.flatnonzero(is_known))
    assert Counter(now[row] for row in found) == Counter(before) & Counter(now)
    assert all(now[row] == before[number] for row, number in zip(found, numbers, strict=True))
    assert len(set(numbers.tolist())) == len(numbers)
    pairs = sorted(zip(found.tolist(), numbers.tolist(), strict=True))
    for row_id in set(now):
        mine = [pair for pair in pairs if now[pair[0]] == row_id]
        assert [row for row, _ in mine] == [row for row, other in enumerate(now) if other == row_id][: len(mine)]
        assert [n for _, n in mine] == [n for n, other in enumerate(before) if other == row_id][: len(mine)]


def test_ids_of_bytes_and_numbers_are_hashed_by_value() -> None:
    for values in ([1, 2, 1], [b"\x00", b"", b"\x00"], ["a", "\U0001f600", "a"]):
        first, second, third = hash_ids(pa.chunked_array([pa.array(values)])).tolist()
        assert first == third != second


@pytest.mark.parametrize("kind", [pa.date32(), pa.time32("ms"), pa.timestamp("ms"), pa.timestamp("ns", "UTC")])
def test_dates_and_times_are_hashed_whatever_their_width(kind: pa.DataType) -> None:
    numbers = pa.array([1, 2, 1], pa.int32() if kind.bit_width == 32 else pa.int64())
    first, second, third = hash_ids(pa.chunked_array([numbers.cast(kind)])).tolist()
    assert first == third != second


def test_a_hash_that_ends_in_zeros_is_whole() -> None:
    """numpy drops them."""
    whole = [b"x" * 14 + b"\0\0", b"\0" * 16, b"y" * 16]
    assert _bytes(np.frombuffer(b"".join(whole), "S16")) == whole


def numbered(positions: list[int], ids: dict[int, str], **other: Any) -> list[dict[str, Any]]:
    return [record(position, row_id=ids[position], **other) for position in positions]


@pytest.mark.parametrize("pass_rows", [20_000_000, 3])
def test_repeated_ids_are_counted_over_all_parts_and_passes(
    root: Location, monkeypatch: pytest.MonkeyPatch, pass_rows: int
) -> None:
    monkeypatch.setattr(duplicates, "_PASS_ROWS", pass_rows)
    ids = dict(enumerate(["a", "b", "a", "c", "d", "a", "c", "e"]))
    write(root, numbered([0, 1, 2, 3], ids))
    write(root, numbered([4, 5], ids))
    assert find_duplicates(scan(root)) == Duplicates(1, 2, ("a",))
    write(root, numbered([6, 7], ids))
    assert find_duplicates(scan(root)) == Duplicates(2, 3, ("a", "c"))


def test_a_row_with_several_records_repeats_no_id(root: Location) -> None:
    ids = {0: "a", 1: "b"}
    write(root, numbered([0, 1], ids, status=FAILED), run=1)
    write(root, numbered([0], ids), run=2)
    write(root, [record(1, question=q, num_questions=2, row_id="b") for q in (0, 1)], run=3, has_questions=True)
    assert find_duplicates(scan(root)) == Duplicates()


def test_only_rows_of_earlier_inputs_are_known(root: Location) -> None:
    ids = {0: "a", 1: "b", 10: "a", 11: "c"}
    write(root, numbered([0, 1, 10, 11], ids))
    rows = KnownRows.of_ledger(scan(root), before=10)
    assert sorted(rows.positions.tolist()) == [0, 1]
    shares = [KnownRows.of_ledger(scan(root), share=(share, 3)) for share in range(3)]
    assert sorted(position for share in shares for position in share.positions.tolist()) == [0, 1, 10, 11]
    for share in shares:
        both = {0, 10} & set(share.positions.tolist())
        assert both in (set(), {0, 10}), "equal ids fall into one share"


def test_many_repeated_ids_are_shown_by_five_examples(root: Location) -> None:
    write(root, [record(position, row_id=f"id-{position // 2}") for position in range(16)])
    found = find_duplicates(scan(root))
    assert (found.ids, found.rows, len(found.examples)) == (8, 8, 5)
    assert set(found.examples) <= {f"id-{n}" for n in range(8)}
