"""Finding deadly rows without Ray: processes are function calls that end with an exception, the store is a dict."""

from __future__ import annotations

import asyncio
import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_job.errors import ErrorCode, ModelError, RowError, Stage
from ray_job.spec import JobSpec
from ray_job.stages import generate as actor
from ray_job.stages.generate import GenerateActor
from ray_job.stages.poison import IN_FLIGHT, Block, PoisonSearch, ReadersWriterLock, describe_in_flight


class Kept:
    """A store in this process."""

    worker = "one"

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.num_calls = 0

    def put(self, key: str, value: bytes, overwrite: bool = True) -> bool:
        self.num_calls += 1
        was_there = key in self.values
        if overwrite or not was_there:
            self.values[key] = value
        return was_there

    def get(self, key: str) -> bytes | None:
        self.num_calls += 1
        return self.values.get(key)

    def delete(self, key: str) -> None:
        self.num_calls += 1
        self.values.pop(key, None)


class DeathError(Exception):
    pass


def life(store: Kept, size: int, deadly: set[int], ran: list[int]) -> Block:
    """A process that works on one block and may die of it."""
    block = Block(store, "block", [f"row {place}" for place in range(size)])
    for piece in block.pieces():
        places = range(piece.start, piece.stop)
        if deadly.intersection(places):
            raise DeathError
        ran += places
    block.finish()
    return block


@settings(deadline=None)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), max_size=6))))
def test_deadly_rows_are_found_and_no_others_within_the_stated_deaths(case: tuple[int, set[int]]) -> None:
    size, deadly = case
    store, num_deaths = Kept(), 0
    while True:
        ran: list[int] = []
        try:
            block = life(store, size, deadly, ran)
            break
        except DeathError:
            num_deaths += 1
    assert {row.place for row in block.poisoned} == deadly
    assert sorted(ran) == sorted(set(range(size)) - deadly), "each other row runs once in the life that ends well"
    levels = max(2, 1 + math.ceil(math.log(size, 8) - 1e-9))
    assert num_deaths <= len(deadly) * levels
    assert all(2 <= row.tries <= levels for row in block.poisoned)
    assert not store.values


def test_a_block_costs_one_mark_set_and_one_taken_away() -> None:
    store = Kept()
    search = PoisonSearch(store, Stage.GENERATE)
    block = search.begin(np.arange(5), list("abcde"))
    assert [(piece.start, piece.stop) for piece in block.pieces()] == [(0, 5)]
    assert next(iter(store.values)).startswith(IN_FLIGHT)
    search.finish(block)
    assert store.num_calls == 2
    assert not block.was_in_flight


def test_rows_merely_beside_a_deadly_one_pass() -> None:
    store = Kept()
    PoisonSearch(store, Stage.GENERATE).begin(np.arange(32), range(32))  # and the process died
    again = PoisonSearch(store, Stage.GENERATE)
    block = again.begin(np.arange(32), range(32))
    assert block.was_in_flight
    assert [(piece.start, piece.stop, piece.tries) for piece in block.pieces()] == [
        (start, start + 4, 2) for start in range(0, 32, 4)
    ]
    again.finish(block)
    assert not block.poisoned
    assert not store.values


def test_the_cause_is_what_the_process_said_before_it_ended_alone() -> None:
    store = Kept()
    search = PoisonSearch(store, Stage.PREPARE)
    search.begin(np.arange(1), ["only"]).note(RowError(ErrorCode.GENERATION_FAILED, "beside others"))
    block = search.begin(np.arange(1), ["only"])
    next(block.pieces())
    block.note(RowError.overdue(3, Stage.PREPARE))
    (row,) = search.begin(np.arange(1), ["only"]).poisoned
    error = search.error(row)
    assert (error.code, error.stage, error.is_retryable) == (ErrorCode.DEADLINE, Stage.PREPARE, False)
    assert "limits.row_deadline_s, 3 s. This was seen 2 times" in error.message
    assert describe_in_flight(store.values.values()) == "Rows in flight: 'only'."
    Block(store, "other", ["a", "b", "c"])
    assert describe_in_flight(store.values.values()) == "Rows in flight: 'only', 'a' to 'c'."


def test_a_suspect_that_waits_for_its_turn_keeps_its_own_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Kept()

    def new_process() -> tuple[PoisonSearch, Block, Block]:
        search = PoisonSearch(store, Stage.GENERATE)
        return search, search.begin(np.arange(1), ["crashes"]), search.begin(np.arange(1, 2), ["hangs"])

    def death(_code: int) -> None:
        raise DeathError

    monkeypatch.setattr("os._exit", death)
    _, crashes, hangs = new_process()
    next(crashes.pieces()), next(hangs.pieces())  # and the process died
    _, crashes, _ = new_process()
    next(crashes.pieces())  # and the process died, with no word why
    search, _, hangs = new_process()
    next(hangs.pieces())
    with pytest.raises(DeathError):
        search.end_process(RowError.overdue(3, Stage.GENERATE))
    _, crashes, hangs = new_process()
    assert [row.code for row in crashes.poisoned] == [ErrorCode.WORKER_KILLED]
    assert [row.code for row in hangs.poisoned] == [ErrorCode.DEADLINE]


def test_marks_hold_ids_and_nothing_else_of_a_row() -> None:
    store = Kept()
    Block(store, "b", ["first", "x" * 500])
    assert set(json.loads(store.values["b"])) == {"pieces", "poisoned", "rows", "code", "message"}
    assert len(store.values["b"]) < 500


def test_one_call_alone_waits_for_the_others_and_holds_back_new_ones() -> None:
    inside: set[str] = set()
    seen: list[set[str]] = []

    async def call(turns: ReadersWriterLock, name: str, is_alone: bool) -> None:
        async with turns.exclusive() if is_alone else turns.shared():
            inside.add(name)
            for _ in range(3):
                await asyncio.sleep(0)
                seen.append(set(inside))
            inside.remove(name)

    async def calls() -> None:
        turns = ReadersWriterLock()
        await asyncio.gather(*(call(turns, name, name.isupper()) for name in "abCdeFGh"))

    asyncio.run(calls())
    assert {frozenset(names) for names in seen if any(name.isupper() for name in names)} == {
        frozenset("C"),
        frozenset("F"),
        frozenset("G"),
    }
    assert {"a", "b"} in seen
    assert {"d", "e"} in seen


def test_a_model_that_kills_its_process_twice_is_not_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(spec: JobSpec, placement: object) -> None:
        raise DeathError

    store = Kept()
    spec = JobSpec.from_dict({"input": {"path": "in"}, "output": {"path": "out"}, "model": {"path": "builtin:noop"}})
    monkeypatch.setattr(actor, "choose_engine", die)
    for _ in range(2):
        with pytest.raises(DeathError):
            GenerateActor(spec, pa.schema([]), store=store)
    with pytest.raises(ModelError, match="died while loading it, 2 times"):
        GenerateActor(spec, pa.schema([]), store=store)
    monkeypatch.undo()
    GenerateActor(spec, pa.schema([]), store=Kept())
