"""The engine's thread: many callers, each gets its own answers; every future ends, whatever the engine or others do."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import random
import threading
from concurrent.futures import CancelledError, Future
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_job.engine import loop as module
from ray_job.engine.loop import EngineLoop
from ray_job.engine.stats import EngineStats
from ray_job.rows import Result, Sample
from ray_job.spec import GenerationParams

PATIENCE_S = 30  # of a test for a future that would never end
FAULTS = ("add", "step", "has_work", "alien", "twice", "lost")


class Echo:
    """Answers with the prompt, newest sample first, at most two a step; breaks in a way of its own at a sample."""

    def __init__(self, fault: str | None = None, at: int = 0) -> None:
        self.waiting: list[Sample] = []
        self.fault = fault
        self.at = at
        self.num_added = 0
        self.num_steps = 0
        self.may_step = threading.Event()
        self.may_step.set()

    def _breaks(self, fault: str) -> bool:
        return self.fault == fault and self.num_added > self.at

    @property
    def has_work(self) -> bool:
        if self._breaks("has_work"):
            raise ZeroDivisionError("has_work broke")
        return bool(self.waiting)

    def add(self, sample: Sample) -> None:
        self.num_added += 1
        if self._breaks("add"):
            raise ZeroDivisionError("add broke")
        self.waiting.append(sample)

    def stats(self) -> EngineStats:
        return EngineStats()

    def step(self) -> list[Result]:
        self.num_steps += 1
        assert self.may_step.wait(PATIENCE_S)
        if self._breaks("step"):
            raise ZeroDivisionError("step broke")
        taken, self.waiting = self.waiting[-2:], self.waiting[:-2]
        results = [Result(sample.key, tuple(sample.input_ids), "") for sample in taken]
        if self._breaks("alien"):
            return [*results, Result(10**6, (), "")]
        if self._breaks("twice"):
            return [*results, *results]
        return [] if self._breaks("lost") else results


def samples(start: int, count: int) -> list[Sample]:
    return [Sample(key, [start + key], (), GenerationParams()) for key in range(count)]


def held(count: int) -> tuple[Echo, EngineLoop, list[Future[Result]]]:
    """An engine that steps only once told to, and futures of samples it has been given."""
    engine = Echo()
    engine.may_step.clear()
    loop = EngineLoop(engine)
    return engine, loop, loop.submit(samples(0, count))


def test_callers_get_their_own_results_under_their_own_keys() -> None:
    loop = EngineLoop(Echo())
    answers: dict[int, list[Result]] = {}

    def call(start: int) -> None:
        answers[start] = [future.result(PATIENCE_S) for future in loop.submit(samples(start, 50))]

    threads = [threading.Thread(target=call, args=(start,)) for start in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loop.close()
    assert sorted(answers) == [0, 1000, 2000]
    for start, results in answers.items():
        assert [(result.key, result.token_ids) for result in results] == [(k, (start + k,)) for k in range(50)]


def test_closing_finishes_the_work_at_hand() -> None:
    engine, loop, futures = held(20)
    closing = threading.Thread(target=loop.close)
    closing.start()
    engine.may_step.set()
    closing.join()
    assert [future.result(0).token_ids for future in futures] == [(key,) for key in range(20)]
    assert loop.num_rows == 0


def test_a_closed_loop_takes_no_samples_and_closes_again() -> None:
    loop = EngineLoop(Echo())
    loop.close()
    with pytest.raises(RuntimeError, match="closed and takes no more samples"):
        loop.submit(samples(0, 1))
    loop.close()
    assert loop.num_rows == 0


def test_a_loop_may_be_closed_from_a_futures_callback() -> None:
    engine, loop, (future,) = held(1)
    future.add_done_callback(lambda _: loop.close())
    engine.may_step.set()
    assert future.result(PATIENCE_S).token_ids == (0,)
    loop.close()


def test_a_broken_engine_fails_every_caller_now_and_later() -> None:
    loop = EngineLoop(Echo("step", at=3))
    futures = loop.submit(samples(0, 5))
    with pytest.raises(ZeroDivisionError):
        futures[4].result(PATIENCE_S)
    loop.close()
    assert loop.busy_since_s is None, "nothing runs that a watchdog could take for a row that hangs"
    with pytest.raises(RuntimeError, match="the engine has failed") as caught:
        loop.submit(samples(0, 1))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("cancelled", [0, 1, 2])
def test_a_cancelled_future_breaks_nothing(cancelled: int) -> None:
    engine, loop, futures = held(3)
    assert futures[cancelled].cancel()
    engine.may_step.set()
    others = [future for future in futures if future is not futures[cancelled]]
    assert [future.result(PATIENCE_S).key for future in others] == [key for key in range(3) if key != cancelled]
    (later,) = loop.submit(samples(7, 1))
    assert later.result(PATIENCE_S).token_ids == (7,)
    loop.close()
    assert futures[cancelled].cancelled()
    assert concurrent.futures.wait(futures, timeout=0).not_done == set(), "whoever waits for it is told"


def test_it_counts_how_long_it_was_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes one second forward whenever it is read."""
    clock = itertools.count()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    loop = EngineLoop(Echo())
    for _ in range(2):
        (future,) = loop.submit(samples(0, 1))
        future.result(PATIENCE_S)
    loop.close()
    assert loop.idle_s == 2.0, "the waits for the second sample and for the end, not that for the first sample"


def test_a_step_that_runs_is_busy() -> None:
    engine, loop, (future,) = held(1)
    while engine.num_steps == 0:
        threading.Event().wait(0.001)
    assert loop.busy_since_s is not None
    engine.may_step.set()
    future.result(PATIENCE_S)
    loop.close()
    assert loop.busy_since_s is None


def test_what_is_cancelled_before_the_engine_has_it_is_not_run() -> None:
    engine, loop, (first,) = held(1)
    while engine.num_steps == 0:  # the engine's thread is then held in a step, and takes nothing in
        threading.Event().wait(0.001)
    later = loop.submit(samples(10, 4))
    assert [future.cancel() for future in later] == [True] * 4
    engine.may_step.set()
    assert first.result(PATIENCE_S).token_ids == (0,)
    loop.close()
    assert engine.num_added == 1
    assert concurrent.futures.wait(later, timeout=0).not_done == set()


def test_a_cancelled_coroutine_leaves_other_callers_alone() -> None:
    """As an actor waits: a call that is given up cancels all of its futures."""
    engine, loop, _ = held(1)

    async def answered(start: int) -> list[Result]:
        return await asyncio.gather(*map(asyncio.wrap_future, loop.submit(samples(start, 5))))

    async def both() -> list[Result]:
        given_up, kept = asyncio.create_task(answered(100)), asyncio.create_task(answered(200))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        engine.may_step.set()
        return await kept

    assert [result.token_ids for result in asyncio.run(both())] == [(200 + key,) for key in range(5)]
    loop.close()


def test_samples_are_queued_all_or_none() -> None:
    def broken() -> Any:
        yield from samples(0, 2)
        raise KeyError("no more")

    engine = Echo()
    loop = EngineLoop(engine)
    with pytest.raises(KeyError):
        loop.submit(broken())
    loop.close()
    assert engine.num_added == 0


def outcome(future: Future[Result]) -> str:
    try:
        future.result(PATIENCE_S)
    except CancelledError:
        return "cancelled"
    except ZeroDivisionError:
        return "broken"
    except (KeyError, RuntimeError):
        return "broken by a wrong answer"
    return "answered"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), fault=st.sampled_from([None, None, *FAULTS]))
def test_every_future_ends_once_whatever_happens(seed: int, fault: str | None) -> None:
    """Callers that submit, cancel and close at once, and an engine that may break at any of its calls."""
    rng = random.Random(seed)
    engine = Echo(fault, at=rng.randrange(60))
    loop = EngineLoop(engine)
    handed_out: list[tuple[int, Future[Result]]] = []
    endings: list[Future[Result]] = []
    cancelled: set[Future[Result]] = set()
    closes_early = rng.random() < 0.5

    def call(start: int, own: random.Random) -> None:
        for batch in range(6):
            try:
                futures = loop.submit(samples(start + 10 * batch, own.randint(1, 6)))
            except RuntimeError:
                return
            for key, future in enumerate(futures):
                handed_out.append((start + 10 * batch + key, future))
                future.add_done_callback(endings.append)
                if own.random() < 0.2 and future.cancel():
                    cancelled.add(future)

    callers = [threading.Thread(target=call, args=(1000 * n, random.Random(rng.random()))) for n in range(4)]
    if closes_early:
        callers.insert(rng.randrange(4), threading.Thread(target=loop.close))
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    loop.close()
    ends = {future: outcome(future) for _, future in handed_out}
    assert sorted(map(id, endings)) == sorted(id(future) for _, future in handed_out), "each ends exactly once"
    assert {future for future, end in ends.items() if end == "cancelled"} == cancelled
    for asked, future in handed_out:
        if ends[future] == "answered":
            assert future.result().token_ids == (asked,)
    assert fault is not None or set(ends.values()) <= {"answered", "cancelled"}
    assert loop.num_rows == 0
    with pytest.raises(RuntimeError):
        loop.submit(samples(0, 1))


@pytest.mark.parametrize("fault", FAULTS)
def test_each_way_to_break_fails_what_is_not_answered(fault: str) -> None:
    loop = EngineLoop(Echo(fault))
    ends = [outcome(future) for future in loop.submit(samples(0, 5))]
    loop.close()
    expected = "broken" if fault in ("add", "step", "has_work") else "broken by a wrong answer"
    assert expected in ends
    assert {*ends} <= {expected, "answered"}
