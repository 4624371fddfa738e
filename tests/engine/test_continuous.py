"""The continuous engine answers as the static one does with every row alone, however rows are batched."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ray_job.engine import continuous
from ray_job.engine.continuous import ContinuousEngine
from ray_job.engine.decode_graph import DecodeGraphs
from ray_job.engine.interface import Vocabulary, run
from ray_job.engine.packed_model import PackedModel
from ray_job.engine.varlen import plain
from ray_job.errors import ErrorCode
from ray_job.models.phi3_vision import weights
from ray_job.models.phi3_vision.packed import PackedPhi3Vision
from ray_job.models.phi3_vision.processor import PIXELS, Phi3VisionProcessor
from ray_job.rows import Picture, Result, Sample
from ray_job.spec import GenerationParams
from tests.conftest import GOLDEN
from tests.engine.tiny import VOCABULARY, alone, essence, needs_flash, picture, prompt, samples, tiny_model

NEVER_STOPS = dataclasses.replace(VOCABULARY, stop_ids=frozenset())


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
        "kernel": st.sampled_from([None, plain]),  # with one the engine goes the way it goes on a GPU
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


def test_a_row_that_runs_too_long_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes one second forward with each step's first look at it."""
    rows = [Sample(key, [1, 5 + key], (), GenerationParams(max_new_tokens=count)) for key, count in enumerate([3, 90])]
    model = tiny_model()
    quiet = by_key(list(run(ContinuousEngine(PackedPhi3Vision(model), NEVER_STOPS, max_tokens=200), rows)))
    assert [quiet[key][3] for key in quiet] == [3, 90]
    clock = itertools.count()
    monkeypatch.setattr(continuous, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    engine = ContinuousEngine(PackedPhi3Vision(model), NEVER_STOPS, max_tokens=200, max_slots=2, row_deadline_s=20)
    later = Sample(7, [1, 9], (), GenerationParams(max_new_tokens=3))
    results = {result.key: result for result in run(engine, [*rows, later])}
    assert essence(results[0]) == quiet[0]
    assert results[1].error is not None
    assert results[1].error.code == ErrorCode.DEADLINE
    assert "limits.row_deadline_s, 20 s" in results[1].error.message
    assert results[7].error is None, "a row that waited is not overdue"


def by_key(results: Sequence[Result]) -> dict[int, tuple[object, ...]]:
    assert len({result.key for result in results}) == len(results)
    return {result.key: essence(result) for result in results}


@settings(max_examples=15, deadline=None)
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


@pytest.mark.gpu
@needs_flash
def test_recorded_steps_answer_as_plain_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(tiny_model()).to("cuda", torch.bfloat16)
    rows = samples(5, 40)
    engine = ContinuousEngine(PackedPhi3Vision(model), VOCABULARY, max_tokens=2000)
    recorded = by_key(list(run(engine, rows)))
    graphs = engine._graphs
    assert graphs is not None
    assert graphs._replays
    assert not graphs._is_broken
    monkeypatch.setattr(DecodeGraphs, "logits", lambda *_: None)
    plain = by_key(list(run(ContinuousEngine(PackedPhi3Vision(model), VOCABULARY, max_tokens=2000), rows)))
    assert recorded == plain


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


@settings(max_examples=6, deadline=None)
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

    def encode_pictures(self, pictures: Sequence[Picture], *args: Any) -> Any:
        if any(each.arrays[PIXELS].shape[0] > 28 for each in pictures):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().encode_pictures(pictures, *args)


def test_a_row_that_never_fits_fails_alone_and_lowers_nothing() -> None:
    model = tiny_model()
    rows = [sample for sample in samples(5, 12) if all(p.arrays[PIXELS].shape[0] == 28 for p in sample.pictures)]
    big = picture(1, 2, 2)
    poison = Sample(99, prompt([5, 6], [big]), [big], GenerationParams(max_new_tokens=3))
    engine = ContinuousEngine(TooLarge(PackedPhi3Vision(model), {}), VOCABULARY, max_tokens=1000)
    results = by_key(list(run(engine, [*rows, poison])))
    assert results.pop(99)[-1] == ErrorCode.OUT_OF_MEMORY
    assert results == alone(model, rows)


class Poisoned(Faulty):
    """Fails whenever a certain token is embedded, or a certain picture's size is encoded."""

    def embed(self, ids_L: torch.Tensor, *args: Any) -> Any:
        if (ids_L == 60).any():
            raise ValueError("poison")
        return self._model.embed(ids_L, *args)

    def encode_pictures(self, pictures: Sequence[Picture], *args: Any) -> Any:
        if any(each.arrays[PIXELS].shape[:2] == (56, 28) for each in pictures):
            raise ValueError("poison")
        return self._model.encode_pictures(pictures, *args)


@pytest.mark.parametrize("sharing", [True, False])
def test_a_row_that_fails_changes_no_other(sharing: bool) -> None:
    model = tiny_model()
    good = [row for row in samples(7, 12) if 60 not in row.input_ids]
    assert all(shown.arrays[PIXELS].shape != (56, 28, 3) for row in good for shown in row.pictures)
    tall, flat = picture(3, 2, 1), picture(4)
    params = GenerationParams(max_new_tokens=4)
    bad = [
        Sample(90, prompt([5, 60, 7], []), (), params),
        Sample(91, prompt([5, 6], [tall]), [tall], params),
        Sample(92, prompt([5, 6], [flat]), [flat, flat], params),  # a picture without placeholders
        Sample(93, prompt([5, 6], [flat])[1:8], [flat], params),  # too few placeholders
        Sample(94, [], (), params),
        Sample(95, prompt([5, 6], [flat]), (), params),  # placeholders without a picture
        # Its neighbour reads its prefix, whose last token fails.
        Sample(96, prompt([9] * 9 + [60], [flat]), [flat], params),
        Sample(97, prompt([9] * 9 + [8], [flat]), [flat], params),
    ]
    engine = ContinuousEngine(
        Poisoned(PackedPhi3Vision(model), {}), VOCABULARY, max_tokens=1000, prefix_sharing=sharing, min_shared_tokens=4
    )
    results = by_key(list(run(engine, [*bad, *good])))
    fine = [*good, bad[-1]]
    assert {key: results[key] for key in results if key < 90 or key == 97} == alone(model, fine)
    assert {results[key][-1] for key in range(90, 97)} == {ErrorCode.GENERATION_FAILED}


def test_a_detokeniser_that_fails_fails_its_row() -> None:
    def detokenize(ids: Sequence[int]) -> str:
        raise UnicodeError("no such text")

    engine = ContinuousEngine(
        PackedPhi3Vision(tiny_model()), dataclasses.replace(VOCABULARY, detokenize=detokenize), max_tokens=1000
    )
    (result,) = run(engine, [Sample(0, [1, 5], (), GenerationParams(max_new_tokens=2))])
    assert result.error is not None
    assert result.error.code == ErrorCode.GENERATION_FAILED


def test_a_row_larger_than_the_pool_is_an_error_of_its_own() -> None:
    engine = ContinuousEngine(PackedPhi3Vision(tiny_model()), VOCABULARY, max_tokens=30)
    rows = [
        Sample(0, [1] * 25, (), GenerationParams(max_new_tokens=6)),
        Sample(1, [1], (), GenerationParams(max_new_tokens=2)),
    ]
    results = by_key(list(run(engine, rows)))
    assert results[0][-1] == ErrorCode.OUT_OF_MEMORY
    assert results[1][-1] is None


def test_questions_about_one_picture_share_its_work() -> None:
    model = tiny_model()
    shown = picture(1, 2, 2)
    params = GenerationParams(max_new_tokens=6)
    rows = [Sample(key, prompt([10 + key, 5], [shown]), [shown], params) for key in range(8)]
    engine = ContinuousEngine(PackedPhi3Vision(model), VOCABULARY, max_tokens=2000, min_shared_tokens=4)
    assert by_key(list(run(engine, rows))) == alone(model, rows)
    stats = engine.stats()
    shared = len(rows[0].input_ids) - 2
    assert (stats.pictures_encoded, stats.crops) == (1, 5)
    assert stats.prefix_tokens_reused == 7 * shared
    assert stats.prefill_tokens + stats.prefix_tokens_reused == sum(len(row.input_ids) for row in rows)


def test_duplicates_are_generated_once() -> None:
    model = tiny_model()
    greedy = GenerationParams(max_new_tokens=5)
    sampled = GenerationParams(max_new_tokens=5, temperature=1.0, seed=3)
    other_seed = sampled.model_copy(update={"seed": 4})
    shown = [picture(1)]
    ids = prompt([5, 6], shown)
    first = [
        Sample(key, ids, shown, params) for key, params in enumerate((greedy, greedy, sampled, sampled, other_seed))
    ]
    engine = ContinuousEngine(PackedPhi3Vision(model), VOCABULARY, max_tokens=1000)
    results = list(run(engine, first))
    later = [Sample(5, ids, shown, greedy.model_copy(update={"seed": 9})), Sample(6, ids, [picture(2)], greedy)]
    results += run(engine, later)
    assert by_key(results) == alone(model, [*first, *later])
    stats = engine.stats()
    assert (stats.rows, stats.duplicate_rows) == (4, 3)


def test_slots_stay_full_while_rows_wait() -> None:
    rng = random.Random(0)
    rows = [
        Sample(
            key, [1, *(rng.randrange(4, 60) for _ in range(9))], (), GenerationParams(max_new_tokens=rng.randint(1, 20))
        )
        for key in range(60)
    ]
    engine = ContinuousEngine(PackedPhi3Vision(tiny_model()), VOCABULARY, max_tokens=1000, max_slots=8)
    assert len(list(run(engine, rows))) == 60
    assert engine.stats().slot_occupancy == 1.0


def test_the_golden_pictures(tiny_folder: Path) -> None:
    processor = Phi3VisionProcessor.from_pretrained(tiny_folder, num_crops=4)
    model = weights.load(tiny_folder, dtype=torch.float32)
    items = json.loads((GOLDEN / "e2e.json").read_text())["tiny-mha.nc4"]["items"]
    rows = []
    for key, item in enumerate(items):
        encoded = processor.process(item["text"], [Image.open(GOLDEN / "images" / name) for name in item["images"]])
        pictures = [Picture(f"{key}/{k}".encode(), {PIXELS: pixels}) for k, pixels in enumerate(encoded.pictures)]
        rows.append(Sample(key, encoded.input_ids, pictures, GenerationParams(max_new_tokens=16)))
    vocabulary = Vocabulary(processor.pad_id, frozenset(), processor.decode)
    engine = ContinuousEngine(PackedPhi3Vision(model), vocabulary, max_tokens=20_000, step_tokens=700, max_crops=3)
    results = {result.key: result for result in run(engine, rows)}
    assert [list(results[key].token_ids) for key in range(len(items))] == [i["greedy16_no_eos"] for i in items]
