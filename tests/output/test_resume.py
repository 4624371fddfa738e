"""Resuming: its cost grows with the output and no faster, and rows done in part are counted when they are whole."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_job.inputs.remaining import AGAIN_SCHEMA
from ray_job.output.account import Account, keys
from ray_job.output.ledger import Ledger, Part
from ray_job.output.partial_rows import PartialRows
from ray_job.output.parts import Receipt
from ray_job.output.resume import what_is_left
from ray_job.rows import result_schema
from ray_job.stages.write import PartWriter
from ray_job.storage.places import Location, locate

from .conftest import FAILED, OK, record, schema
from .quiet_job import QuietJob

NUM_QUESTIONS = 3


class Counted(np.ndarray):  # type: ignore[type-arg]
    """An array that counts the elements that operations on it take and give."""

    num_elements = 0

    def __getitem__(self, item: Any) -> Any:
        found = super().__getitem__(item)
        Counted.num_elements += getattr(found, "size", 1)
        return found

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return self._called(getattr(ufunc, method), inputs, options)

    def __array_function__(self, function: Any, types: Any, inputs: Any, options: Any) -> Any:
        # A search looks at a few elements only.
        return self._called(function, inputs, options, seen=inputs[1:] if function is np.searchsorted else inputs)

    @staticmethod
    def _called(function: Any, inputs: Any, options: Any, seen: Any = None) -> Any:
        Counted.num_elements += sum(value.size for value in seen or inputs if isinstance(value, np.ndarray))
        plain = [value.view(np.ndarray) if isinstance(value, Counted) else value for value in inputs]
        if "out" in options:
            options = {**options, "out": tuple(value.view(np.ndarray) for value in options["out"])}
        result = function(*plain, **options)
        return result.view(Counted) if isinstance(result, np.ndarray) else result


class CountedList(list[Part]):
    """Parts that count how often one of them is looked at."""

    num_reads = 0

    def __iter__(self) -> Any:
        CountedList.num_reads += len(self)
        return super().__iter__()

    def __getitem__(self, item: Any) -> Any:
        found = super().__getitem__(item)
        CountedList.num_reads += len(found) if isinstance(item, slice) else 1
        return found


def part_of(name: str, folder: str, numbers: Any, questions: Any, num_questions: int) -> Part:
    found = keys(numbers, questions)
    size = len(found)
    account = Account(1, found, np.full(size, num_questions), np.ones(size, dtype=np.int64))
    return Part(folder, locate("/out").at(f"/out/{folder}/{name}.parquet"), 0, 0.0, size, account)


def output_with_failed_questions(num_rows: int) -> Ledger:
    """Three questions a row; of every second row the first failed."""
    rows, questions = np.repeat(np.arange(num_rows), NUM_QUESTIONS), np.tile(np.arange(NUM_QUESTIONS), num_rows)
    is_failed = (rows % 2 == 0) & (questions == 0)
    parts = [
        part_of("part-1", folder, rows[mask], questions[mask], NUM_QUESTIONS)
        for folder, mask in (("data", ~is_failed), ("errors", is_failed))
    ]
    return Ledger(parts, {})


def num_elements(num_rows: int) -> int:
    """How many elements of the ledger's arrays finding the questions left goes through."""
    ledger = output_with_failed_questions(num_rows)
    ledger.__dict__["keys"], ledger.__dict__["_order"] = ledger.keys.view(Counted), ledger._order.view(Counted)
    Counted.num_elements = 0
    remaining = what_is_left(ledger, np.arange(num_rows), 0, retry_failed=True)
    assert remaining.again.column("_rj_questions").to_pylist() == [[0]] * (num_rows // 2)
    assert remaining.is_left.tolist() == [row % 2 == 0 for row in range(num_rows)]
    return Counted.num_elements


def test_what_is_left_of_rows_with_several_questions_is_found_in_linear_time() -> None:
    once, twice, four_times = (num_elements(num_rows) for num_rows in (500, 1000, 2000))
    assert once > 500 * NUM_QUESTIONS, "the count sees the arrays"
    assert twice < 2.2 * once
    assert four_times < 2.2 * twice


def num_part_reads(num_parts: int) -> int:
    parts = [part_of(f"part-{n:05}", "data", np.array([n]), np.array([0]), 1) for n in range(num_parts)]
    ledger = Ledger(CountedList(parts), {})
    CountedList.num_reads = 0
    assert all(ledger.counts_of(index).tolist() == [True] for index in range(num_parts))
    return CountedList.num_reads


def test_which_records_of_each_part_count_is_found_in_linear_time() -> None:
    assert 0 < num_part_reads(400) <= 2.2 * num_part_reads(200)


def receipt_of(root: Location, records: list[dict[str, Any]]) -> Receipt:
    table = pa.Table.from_pylist(records, result_schema(schema(True)))
    (receipt,) = Receipt.of_table(PartWriter(root, schema(True), 2)(table))
    return receipt


def again(rows: dict[int, list[int] | None]) -> pa.Table:
    columns = [list(rows), list(rows), [0] * len(rows), list(rows.values())]
    return pa.table([pa.array(v, f.type) for v, f in zip(columns, AGAIN_SCHEMA, strict=True)], schema=AGAIN_SCHEMA)


def test_a_row_whose_first_question_was_done_before_is_counted_when_its_second_is(root: Location) -> None:
    receipt = receipt_of(root, [record(0, question=1, num_questions=2)])
    assert (receipt.rows, receipt.answered, receipt.partial_rows) == (0, 1, [[0, 1, 2]])
    assert PartialRows(again({0: [1]})).num_completed(receipt) == 1
    assert PartialRows(again({})).num_completed(receipt) == 0, "here the first is still to come"


@settings(deadline=None)
@given(data=st.data())
def test_each_row_is_counted_once_however_its_questions_fall_into_parts(data: st.DataObject) -> None:
    """By receipts made as the writer makes them; rows begun before have some of their questions left."""
    totals = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    left = {}
    for row, total in enumerate(totals):
        questions = data.draw(st.sets(st.integers(0, total - 1), min_size=1))
        left[row] = sorted(questions)
    records = [(row, question) for row, questions in left.items() for question in questions]
    random.Random(data.draw(st.integers(0, 99))).shuffle(records)
    begun = {row: questions for row, questions in left.items() if len(questions) < totals[row]}
    partial, num_rows, is_open = PartialRows(again(begun)), 0, {row: set(left[row]) for row in left}
    size = data.draw(st.integers(1, 5))
    for start in range(0, len(records), size):
        here = sorted(records[start : start + size])
        pieces, whole = [], 0
        for row, group in itertools.groupby(here, key=lambda pair: pair[0]):
            count = len(list(group))
            whole += count == totals[row]
            pieces += [(row, count, totals[row])] if count < totals[row] else []
        num_rows += whole + partial.num_completed(Receipt("p", whole, 0, 0, 0, 0, partial_rows=pieces))
        for row, question in here:
            is_open[row].discard(question)
        assert num_rows == sum(not questions for questions in is_open.values())
    assert num_rows == len(totals)


@pytest.fixture
def job(tmp_path: Any) -> QuietJob:
    job = QuietJob(tmp_path, {"prompt": {"questions": ["what?", "who?"]}})
    job.write_input(3)
    return job


def test_a_run_knows_that_nothing_is_left_when_the_last_question_comes(job: QuietJob) -> None:
    """Else a signal that comes then would end a run that is done."""
    output = schema(True).set(2, pa.field("question", pa.string()))
    results = result_schema(output)

    def add(run: Any, rows: list[dict[str, Any]]) -> None:
        table = pa.Table.from_pylist([{**row, "question": "what?"} for row in rows], results)
        for receipt in Receipt.of_table(PartWriter(run.root, output, run.number)(table)):
            run.add(receipt)

    with job.opened() as run:
        run.begin("float32")
        add(run, [record(0, OK, 0, 2), record(0, OK, 1, 2), record(1, OK, 0, 2)])
        assert (run.totals.rows, run.num_left) == (1, 2)
    with job.opened("resume") as run:
        assert run.num_left == 2
        run.begin("float32")
        assert (run.totals.rows, run.num_left) == (1, 2)
        add(run, [record(2, OK, 0, 2)])
        add(run, [record(1, FAILED, 1, 2)])
        assert (run.totals.rows, run.num_left) == (2, 1)
        add(run, [record(2, OK, 1, 2)])
        assert (run.totals.rows, run.num_left) == (3, 0)
        report = run.finish()
    assert (report.totals.rows, report.totals.answered, report.totals.failed) == (3, 5, 1)
    job.verified()
