"""Equal samples are run once: what counts as equal, who answers whom, and what is remembered for how long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ray_job.engine import duplicates as module
from ray_job.engine.duplicates import Duplicates
from ray_job.errors import ErrorCode, RowError, Stage
from ray_job.rows import Picture, Result, Sample
from ray_job.spec import GenerationParams

PIXELS = np.zeros((1, 1, 3), np.uint8)


def sample(key: int, ids: tuple[int, ...] = (1, 2), digests: tuple[bytes, ...] = (), **params: Any) -> Sample:
    return Sample(key, ids, [Picture(digest, {"pixels": PIXELS}) for digest in digests], GenerationParams(**params))


def answer(key: int, text: str = "yes") -> Result:
    return Result(key, (5, 6), text, latency_ms=70.0)


def test_followers_come_out_with_the_one_that_is_run() -> None:
    duplicates = Duplicates(10)
    first = sample(0)
    assert duplicates.leads(first)
    assert not duplicates.leads(sample(1))
    assert duplicates.leads(sample(2, ids=(1, 3)))
    assert not duplicates.leads(sample(3))
    results = duplicates.fan_out(first, answer(0))
    assert [(result.key, result.text, result.token_ids) for result in results] == [
        (k, "yes", (5, 6)) for k in (0, 1, 3)
    ]
    assert duplicates.num_found == 2


def test_a_followers_latency_counts_from_its_own_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0, 15.0])
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    duplicates = Duplicates(10)
    first = sample(0)
    assert [duplicates.leads(each) for each in (first, sample(1), sample(2))] == [True, False, False]
    assert [result.latency_ms for result in duplicates.fan_out(first, answer(0))] == [70.0, 5000.0, 3000.0]


def test_a_later_duplicate_is_remembered_and_an_error_is_not() -> None:
    duplicates = Duplicates(10)
    first, failed = sample(0), sample(1, ids=(9,))
    assert duplicates.remembered(first) is None
    assert duplicates.leads(first)
    assert duplicates.leads(failed)
    assert duplicates.remembered(sample(2)) is None, "still running"
    duplicates.fan_out(first, answer(0))
    error = RowError(ErrorCode.GENERATION_FAILED, "broken", Stage.GENERATE)
    assert [result.error for result in duplicates.fan_out(failed, Result(1, error=error))] == [error]
    found = duplicates.remembered(sample(7))
    assert found is not None
    assert (found.key, found.text, found.latency_ms) == (7, "yes", 0.0)
    assert duplicates.remembered(sample(8, ids=(9,))) is None
    assert duplicates.leads(sample(8, ids=(9,))), "what failed is run again"
    assert duplicates.num_found == 1


@pytest.mark.parametrize("most", [0, 1, 2])
def test_the_oldest_answers_are_forgotten_first(most: int) -> None:
    duplicates = Duplicates(most)
    for key in range(4):
        each = sample(key, ids=(key,))
        assert duplicates.leads(each)
        duplicates.fan_out(each, answer(key, str(key)))
    found = [duplicates.remembered(sample(9, ids=(key,))) for key in range(4)]
    assert [result.text if result else None for result in found] == [None] * (4 - most) + [*"0123"[4 - most :]]


def test_without_it_every_sample_is_run() -> None:
    duplicates = Duplicates(None)
    first = sample(0)
    assert duplicates.leads(first)
    assert duplicates.leads(sample(1))
    assert [result.key for result in duplicates.fan_out(first, answer(0))] == [0]
    assert duplicates.remembered(sample(2)) is None
    assert duplicates.num_found == 0


SAMPLING = {"temperature": 1.0, "seed": 3}


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ({"ids": (1, 2)}, {"ids": (1, 2)}, True),
        ({"ids": (1, 2)}, {"ids": (2, 1)}, False),
        ({"ids": (1, 2)}, {"ids": (1, 2, 0)}, False),
        ({"digests": (b"a",)}, {"digests": (b"b",)}, False),
        ({"digests": (b"a", b"b")}, {"digests": (b"b", b"a")}, False),
        ({"digests": (b"ab", b"c")}, {"digests": (b"a", b"bc")}, False),
        ({"max_new_tokens": 5}, {"max_new_tokens": 6}, False),
        ({"stop": ("a",)}, {"stop": ("b",)}, False),
        ({"seed": 1}, {"seed": 2}, True),
        ({"top_p": 0.5, "top_k": 3}, {"top_p": 0.6, "top_k": 4}, True),
        ({"temperature": 1e-6}, {}, True),
        ({"temperature": 1.0, "top_k": 1, "seed": 1}, {"repetition_penalty": 1.0}, True),
        ({"temperature": 1.0, "top_p": 0.0}, {"repetition_penalty": 1.1}, False),
        ({}, {"temperature": 1.0}, False),
        ({"structured_outputs": {"choice": ["a"]}}, {"structured_outputs": {"choice": ["a"]}}, True),
        ({"structured_outputs": {"choice": ["a"]}}, {"structured_outputs": {"choice": ["b"]}}, False),
        ({"structured_outputs": {"choice": ["a"]}}, {"structured_outputs": {"regex": "a"}}, False),
        ({"structured_outputs": {"choice": ["a"]}}, {}, False),
        (SAMPLING, SAMPLING, True),
        (SAMPLING, {**SAMPLING, "seed": 4}, False),
        (SAMPLING, {**SAMPLING, "top_p": 0.5}, False),
        (SAMPLING, {**SAMPLING, "top_k": 5}, False),
        (SAMPLING, {**SAMPLING, "temperature": 1.1}, False),
    ],
)
def test_equal_is_what_must_have_the_same_answer(one: dict[str, Any], other: dict[str, Any], is_same: bool) -> None:
    duplicates = Duplicates(1)
    assert duplicates.leads(sample(0, **one))
    assert duplicates.leads(sample(1, **other)) is not is_same
