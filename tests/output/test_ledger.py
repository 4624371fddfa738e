"""What counts among the records of several runs, what is left to do, and what compaction keeps."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_job.errors import RayJobError
from ray_job.inputs.remaining import Remaining
from ray_job.output.account import Account, keys, positions_of, questions_of
from ray_job.output.compaction import drop_superseded
from ray_job.output.ledger import Ledger
from ray_job.output.resume import what_is_left
from ray_job.output.totals import Totals
from ray_job.rows import POSITION
from ray_job.storage.places import Location, locate

from .conftest import FAILED, OK, again_rows, left_rows, record, scan, write


def left(ledger: Ledger, num_rows: int, retry_failed: bool = False) -> Remaining:
    return what_is_left(ledger, np.arange(num_rows), 0, retry_failed)


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**16 - 1))))
def test_keys_hold_row_and_question(pairs: list[tuple[int, int]]) -> None:
    positions, questions = (np.array([pair[i] for pair in pairs], dtype=np.int64) for i in (0, 1))
    both = keys(positions, questions)
    assert positions_of(both).tolist() == positions.tolist()
    assert questions_of(both).tolist() == questions.tolist()
    assert np.argsort(both, kind="stable").tolist() == [i for _, i in sorted((pair, i) for i, pair in enumerate(pairs))]
    assert both.tolist() == [position * 2**16 + question for position, question in pairs], "what footers hold for good"
    account = Account(3, both, questions, positions, error_codes={"x": 1})
    copy = Account.of_footer(account.to_footer().encode())
    assert (copy.keys.tolist(), copy.attempts.tolist(), copy.run) == (both.tolist(), positions.tolist(), 3)


def test_too_many_questions_are_refused_and_a_strange_footer_is_an_error() -> None:
    with pytest.raises(RayJobError, match="more than 65536 questions"):
        keys(np.array([1]), np.array([2**16]))
    for text in (b"", b"{}", b'{"keys": "x"}', b"[1]"):
        with pytest.raises(ValueError):
            Account.of_footer(text)


def test_an_empty_output_leaves_everything(root: Location) -> None:
    ledger = scan(root)
    assert left_rows(left(ledger, 3)) == [0, 1, 2]
    assert Totals.of_ledger(ledger) == Totals()


def test_committed_rows_are_not_left_and_failed_ones_only_on_request(root: Location) -> None:
    write(root, [record(0), record(2, FAILED), record(3)])
    assert left_rows(left(scan(root), 5)) == [1, 4]
    retried = left(scan(root), 5, retry_failed=True)
    assert left_rows(retried) == [1, 2, 4]
    assert again_rows(retried) == {2: (2, 1, None)}
    totals = Totals.of_ledger(scan(root))
    assert (totals.rows, totals.answered, totals.failed, totals.prompt_tokens) == (3, 2, 1, 6)
    assert totals.error_codes == {"storage": 1}


def test_a_row_with_a_question_missing_is_left_with_that_question(root: Location) -> None:
    write(root, [record(0, question=q, num_questions=3) for q in (0, 1)], has_questions=True)
    write(root, [record(1, FAILED if q else OK, q, 2) for q in (0, 1)], has_questions=True)
    assert again_rows(left(scan(root), 2)) == {0: (0, 0, [2])}
    assert again_rows(left(scan(root), 2, retry_failed=True)) == {0: (0, 0, [2]), 1: (1, 1, [1])}


def test_a_row_that_failed_as_a_whole_is_asked_everything_again(root: Location) -> None:
    write(root, [record(0, FAILED)], has_questions=True)
    assert left_rows(left(scan(root), 1)) == []
    assert again_rows(left(scan(root), 1, retry_failed=True)) == {0: (0, 1, None)}
    write(root, [record(0, question=q, num_questions=3) for q in range(2)], run=2, has_questions=True)
    assert again_rows(left(scan(root), 1)) == {0: (0, 0, [2])}, "a part with the third question is still missing"


def test_an_answer_counts_before_an_error_and_a_later_error_before_an_earlier(root: Location) -> None:
    write(root, [record(0, FAILED), record(1, FAILED), record(2)])
    write(root, [record(0), record(1, FAILED, attempts=2)], run=2)
    write(root, [record(0, FAILED)], run=3)  # a worker thought dead, late
    ledger = scan(root)
    assert ledger.num_superseded == 3
    assert left_rows(left(ledger, 3)) == []
    assert again_rows(left(ledger, 3, retry_failed=True)) == {1: (1, 2, None)}
    assert drop_superseded(root, ledger) == 3
    after = scan(root)
    assert after.num_superseded == 0
    assert Totals.of_ledger(after) == Totals(3, 2, 1, 6, 4, 2, {"storage": 1})
    rows = {row["row_id"]: row for part in Path(root.path).glob("*/part-*") for row in pq.read_table(part).to_pylist()}
    assert {name: (row["status"], row["attempts"]) for name, row in rows.items()} == {
        "row-0": ("ok", 1),
        "row-1": ("error", 2),
        "row-2": ("ok", 1),
    }


Step = tuple[int, list[tuple[int, bool]]]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=6, unique_by=lambda r: r[0]), max_size=5
    ),
    seed=st.integers(0, 10),
)
def test_compaction_changes_nothing_that_counts_wherever_it_is_cut_short(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[tuple[int, bool]]], seed: int
) -> None:
    root = locate(str(tmp_path_factory.mktemp("out")))
    for run, rows in enumerate(steps, start=1):
        if rows:
            write(root, [record(position, OK if ok else FAILED, attempts=run) for position, ok in rows], run=run)
    before = scan(root)
    counting = before.rows()
    doomed = [part for index, part in enumerate(before.parts) if not before.counts_of(index).all()]
    keep = random.Random(seed).sample(doomed, len(doomed) // 2)
    partial = Ledger(before.parts, {})
    for index, part in enumerate(partial.parts):
        if part in keep:
            partial.counts[sum(len(p.account.keys) for p in partial.parts[:index]) :][: len(part.account.keys)] = True
    drop_superseded(root, partial)
    for _ in range(2):
        now = scan(root)
        assert now.rows().positions.tolist() == counting.positions.tolist()
        assert now.rows().num_answered.tolist() == counting.num_answered.tolist()
        assert now.rows().attempts.tolist() == counting.attempts.tolist()
        drop_superseded(root, now)
    assert scan(root).num_superseded == 0


def test_files_that_are_no_parts_are_named(root: Location) -> None:
    write(root, [record(0)])
    data = Path(root.path) / "data"
    (whole,) = data.glob("part-*")
    (data / "part-0001-cut.parquet").write_bytes(whole.read_bytes()[:-100])
    (data / "part-0001-empty.parquet").write_bytes(b"")
    pq.write_table(pa.table({"x": [1]}), data / "part-0001-alien.parquet")
    (data / "notes.txt").write_text("mine")
    ledger = scan(root)
    assert [part.name for part in ledger.parts] == [f"data/{whole.name}"]
    assert sorted(ledger.unreadable) == [f"data/part-0001-{name}.parquet" for name in ("alien", "cut", "empty")]


def test_a_task_run_twice_writes_one_file_and_another_run_another(root: Location) -> None:
    rows = [record(position) for position in range(4)]
    write(root, rows)
    write(root, reversed(rows))
    assert len(scan(root).parts) == 1
    write(root, rows, run=2)
    assert [part.account.run for part in scan(root).parts] == [1, 2]


def test_reading_skips_what_is_done_and_numbers_the_rest() -> None:
    again: dict[str, Any] = {"row": [4], POSITION: [1], "_rj_attempts": [2], "_rj_questions": [[1]]}
    whole = Remaining.all(6, first_position=100)
    remaining = Remaining(np.array([0, 1, 1, 0, 1, 1], bool), 100, pa.table(again, schema=whole.again.schema))
    table = pa.table({"row_id": list("abcdef")})
    assert whole.select(table, 0).column("row_id").to_pylist() == list("abcdef")
    rows = remaining.select(table, 0).to_pylist()
    assert [(row["row_id"], row[POSITION], row["_rj_attempts"], row["_rj_questions"]) for row in rows] == [
        ("b", 101, 0, None),
        ("c", 102, 0, None),
        ("e", 1, 2, [1]),
        ("f", 105, 0, None),
    ]
    stretch = remaining.stretch(3, 6)
    assert stretch.num_rows == 2
    assert stretch.select(table.slice(4, 1), 4).to_pylist() == [rows[2]]
