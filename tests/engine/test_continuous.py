"""The continuous engine answers as the static one does with every row alone, however rows are batched."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_job.engine.continuous import ContinuousEngine
from ray_job.engine.interface import run
from ray_job.engine.packed_model import PackedModel
from ray_job.errors import ErrorCode
from ray_job.models.phi3_vision.packed import PackedPhi3Vision
from ray_job.rows import Result, Sample
from ray_job.spec import GenerationParams
from tests.engine.tiny import VOCABULARY, alone, essence, picture, prompt, samples, tiny_model


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


ENGINES = st.fixed_dictionaries(
    {
        "max_slots": st.sampled_from([1, 2, 3, 5, 8, 32]),
        "max_tokens": st.sampled_from([120, 200, 1000]),
        "step_tokens": st.sampled_from([1, 7, 33, 64, 1000]),
        "max_crops": st.sampled_from([1, 4, 100]),
        "vision_cache_bytes": st.sampled_from([0, 2000, 10**6]),
        "prefix_sharing": st.booleans(),
        "min_shared_tokens": st.sampled_from([1, 8, 16]),
        "answer_duplicates": st.booleans(),
        "max_remembered_answers": st.sampled_from([0, 1, 100]),
    }
)


def feed(engine: ContinuousEngine, rows: Sequence[Sample], rng: random.Random) -> list[Result]:
    """Adds rows in bursts while the engine runs, as batches arrive in an actor."""
    waiting, results = list(rows), []
    while waiting or engine.has_work:
        for _ in range(rng.randint(0, 4)):
            if waiting:
                engine.add(waiting.pop())
        results += engine.step()
    return results


def by_key(results: Sequence[Result]) -> dict[int, tuple[object, ...]]:
    assert len({result.key for result in results}) == len(results)
    return {result.key: essence(result) for result in results}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    options=ENGINES,
    switch=st.sampled_from([4096, 18, 30, 48]),
    kv_heads=st.sampled_from([4, 2]),
    window=st.sampled_from([None, None, 12]),
)
def test_an_answer_does_not_depend_on_batching(
    seed: int, options: dict[str, Any], switch: int, kv_heads: int, window: int | None
) -> None:
    model = tiny_model(switch, kv_heads, window)
    rng = random.Random(seed)
    rows = samples(seed, rng.randint(1, 10))
    expected = alone(model, rows)
    rng.shuffle(rows)
    engine = ContinuousEngine(PackedPhi3Vision(model), VOCABULARY, **options)
    assert by_key(feed(engine, rows, rng)) == expected


class Faulty:
    """A model that fails as it is told: `failures[n]` is raised by its n-th call."""

    def __init__(self, model: PackedModel, failures: dict[int, Exception]) -> None:
        self._model = model
        self._failures = failures
        self.num_calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def _called(self) -> None:
        self.num_calls += 1
        if self.num_calls in self._failures:
            raise self._failures[self.num_calls]

    def encode_pictures(self, *args: Any) -> Any:
        self._called()
        return self._model.encode_pictures(*args)

    def forward(self, *args: Any) -> Any:
        self._called()
        return self._model.forward(*args)

    def logits(self, *args: Any) -> Any:
        self._called()
        return self._model.logits(*args)


SHORTAGES = st.sampled_from(
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ]
)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    options=ENGINES,
    switch=st.sampled_from([4096, 30]),
    failures=st.dictionaries(st.integers(1, 40), SHORTAGES, min_size=1, max_size=3),
)
def test_running_out_of_memory_loses_no_row(
    seed: int, options: dict[str, Any], switch: int, failures: dict[int, Exception]
) -> None:
    options |= {"step_tokens": 1000, "max_crops": 100}  # room to halve three times
    model = tiny_model(switch)
    rng = random.Random(seed)
    rows = samples(seed, rng.randint(1, 8))
    faulty = Faulty(PackedPhi3Vision(model), failures)
    engine = ContinuousEngine(faulty, VOCABULARY, **options)
    results = by_key(feed(engine, rows, rng))
    assert results == alone(model, rows)
    raised = sum(number <= faulty.num_calls for number in failures)
    stats = engine.stats()
    assert stats.memory_failures == raised
    assert stats.token_ceiling == stats.max_tokens // 2**raised


class TooLarge(Faulty):
    """Out of memory whenever a certain picture is encoded."""

    def encode_pictures(self, pictures: Sequence[torch.Tensor], *args: Any) -> Any:
        if any(pixels.shape[0] > 28 for pixels in pictures):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().encode_pictures(pictures, *args)


def test_a_row_that_never_fits_fails_alone_and_lowers_nothing() -> None:
    model = tiny_model()
    rows = [sample for sample in samples(5, 12) if all(p.pixels_HWC.shape[0] == 28 for p in sample.pictures)]
    big = picture(1, 2, 2)
    poison = Sample(99, prompt([5, 6], [big]), [big], GenerationParams(max_new_tokens=3))
    engine = ContinuousEngine(TooLarge(PackedPhi3Vision(model), {}), VOCABULARY, max_tokens=1000)
    results = by_key(list(run(engine, [*rows, poison])))
    assert results.pop(99)[-1] == ErrorCode.OUT_OF_MEMORY
    assert results == alone(model, rows)
