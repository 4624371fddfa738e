"""The engine's thread: many callers, each gets its own answers; a failing engine leaves nobody waiting."""

from __future__ import annotations

import threading

import pytest

from ray_job.engine.loop import EngineLoop
from ray_job.engine.stats import EngineStats
from ray_job.rows import Result, Sample
from ray_job.spec import GenerationParams


class Echo:
    """Answers with the prompt, newest sample first, at most two a step."""

    def __init__(self, fails_on: int | None = None) -> None:
        self.waiting: list[Sample] = []
        self.fails_on = fails_on

    @property
    def has_work(self) -> bool:
        return bool(self.waiting)

    def add(self, sample: Sample) -> None:
        self.waiting.append(sample)

    def stats(self) -> EngineStats:
        return EngineStats()

    def step(self) -> list[Result]:
        if any(self.fails_on in sample.input_ids for sample in self.waiting):
            raise ZeroDivisionError("the engine broke")
        taken, self.waiting = self.waiting[-2:], self.waiting[:-2]
        return [Result(sample.key, tuple(sample.input_ids), "") for sample in taken]


def samples(start: int, count: int) -> list[Sample]:
    return [Sample(key, [start + key], (), GenerationParams()) for key in range(count)]


def test_callers_get_their_own_results_under_their_own_keys() -> None:
    loop = EngineLoop(Echo())
    answers: dict[int, list[Result]] = {}

    def call(start: int) -> None:
        answers[start] = [future.result(timeout=10) for future in loop.submit(samples(start, 50))]

    threads = [threading.Thread(target=call, args=(start,)) for start in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loop.close()
    for start, results in answers.items():
        assert [(result.key, result.token_ids) for result in results] == [(k, (start + k,)) for k in range(50)]


def test_closing_finishes_the_work_at_hand() -> None:
    loop = EngineLoop(Echo())
    futures = loop.submit(samples(0, 20))
    loop.close()
    assert all(future.done() for future in futures)


def test_a_broken_engine_fails_every_caller_now_and_later() -> None:
    loop = EngineLoop(Echo(fails_on=3))
    futures = loop.submit(samples(0, 5))
    with pytest.raises(ZeroDivisionError):
        futures[4].result(timeout=10)
    loop.close()
    with pytest.raises(RuntimeError, match="the engine has failed"):
        loop.submit(samples(0, 1))
