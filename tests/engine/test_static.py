"""The static engine: a batch answers as single runs do, on either padding side, across the RoPE switch."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ray_job.engine.batching import SampleSize, batch_rows, num_batches
from ray_job.engine.collate import PaddingSide
from ray_job.engine.interface import Vocabulary, run
from ray_job.engine.static import StaticEngine
from ray_job.errors import ErrorCode
from ray_job.models.phi3_vision import weights
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.padded import PaddedPhi3Vision
from ray_job.models.phi3_vision.processor import PIXELS, Phi3VisionProcessor
from ray_job.rows import FinishReason, Picture, Result, Sample
from ray_job.spec import GenerationParams
from tests.conftest import GOLDEN

GREEDY = GenerationParams(max_new_tokens=12)


@pytest.fixture(scope="module")
def processor(tiny_folder: Path) -> Phi3VisionProcessor:
    return Phi3VisionProcessor.from_pretrained(tiny_folder, num_crops=4)


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Phi3VisionModel:
    """The tiny model with a switch so near that its rows cross it."""
    loaded = weights.load(tiny_folder, dtype=torch.float32)
    return with_switch(loaded, 4096)


def with_switch(model: Phi3VisionModel, original_max_position_embeddings: int) -> Phi3VisionModel:
    config = dataclasses.replace(model.config, original_max_position_embeddings=original_max_position_embeddings)
    other = Phi3VisionModel(config, model.attention)
    other.load_state_dict(model.state_dict())
    return other.eval()


def make_samples(processor: Phi3VisionProcessor, seed: int, count: int) -> list[Sample]:
    """Text-only, one-picture and several-picture rows of mixed lengths, sizes and parameters."""
    rng = random.Random(seed)
    samples = []
    for key in range(count):
        sizes = [rng.choice([(30, 30), (60, 25), (20, 70), (50, 40)]) for _ in range(rng.choice([0, 0, 1, 1, 2]))]
        pictures = [Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1])) for size in sizes]
        tags = "".join(f"<|image_{k}|>\n" for k in range(1, len(sizes) + 1))
        text = " ".join(rng.choice(["what", "is", "the", "other", "thing"]) for _ in range(rng.randint(1, 30)))
        encoded = processor.process(f"<|user|>\n{tags}{text}<|end|>\n<|assistant|>\n", pictures)
        params = GenerationParams(
            max_new_tokens=rng.randint(1, 12),
            temperature=rng.choice([0.0, 0.0, 1.0]),
            seed=rng.randrange(1000),
            repetition_penalty=rng.choice([1.0, 1.3]),
        )
        prepared = [Picture(hashlib.sha256(p.tobytes()).digest(), {PIXELS: p}) for p in encoded.pictures]
        samples.append(Sample(key, encoded.input_ids, prepared, params))
    return samples


def answers(
    model: Phi3VisionModel, processor: Phi3VisionProcessor, samples: Sequence[Sample], rows: int, side: PaddingSide
) -> dict[int, tuple[object, ...]]:
    vocabulary = Vocabulary(processor.pad_id, frozenset(processor.stop_ids), processor.decode)
    engine = StaticEngine(PaddedPhi3Vision(model, side), vocabulary, max_batch_rows=rows)
    results = list(run(engine, samples))
    assert sorted(result.key for result in results) == sorted(sample.key for sample in samples)
    return {result.key: _essence(result) for result in results}


def _essence(result: Result) -> tuple[object, ...]:
    assert result.error is None
    return result.token_ids, result.text, result.finish_reason, result.completion_tokens


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(2, 6),
    side=st.sampled_from(["left", "right"]),
    switch=st.sampled_from([4096, 40, 500]),
)
def test_a_batch_answers_as_single_runs_do(
    model: Phi3VisionModel, processor: Phi3VisionProcessor, seed: int, rows: int, side: PaddingSide, switch: int
) -> None:
    switched = with_switch(model, switch)
    samples = make_samples(processor, seed, 6)
    single = answers(switched, processor, samples, 1, "left")
    random.Random(seed).shuffle(samples)
    assert answers(switched, processor, samples, rows, side) == single


@pytest.mark.parametrize("start", [28, 36])
def test_a_row_that_crosses_the_switch_answers_as_without_a_cache(
    model: Phi3VisionModel, processor: Phi3VisionProcessor, start: int
) -> None:
    switched = with_switch(model, start + 10)
    ids = processor.process("<|user|>\n" + "the " * start + "<|end|>\n<|assistant|>\n", []).input_ids[-start:]
    vocabulary = Vocabulary(processor.pad_id, frozenset(), processor.decode)
    sample = Sample(0, ids, (), GenerationParams(max_new_tokens=24))
    (result,) = run(StaticEngine(PaddedPhi3Vision(switched), vocabulary), [sample])
    assert list(result.token_ids) == _without_cache(switched, ids, 24)


@torch.no_grad()
def _without_cache(model: Phi3VisionModel, ids: list[int], steps: int) -> list[int]:
    ids = list(ids)
    for _ in range(steps):
        logits_1V = model(
            model.embed_row(torch.tensor(ids))[None],
            position_ids_BL=torch.arange(len(ids))[None],
            is_long_B=torch.tensor([model.config.is_long(len(ids))]),
            logits_to_keep=1,
        )
        ids.append(int(logits_1V.argmax()))
    return ids[-steps:]


def test_an_answer_ends_at_a_stop_id_a_stop_string_or_its_length(
    model: Phi3VisionModel, processor: Phi3VisionProcessor
) -> None:
    ids = processor.process("<|user|>\nhi<|end|>\n<|assistant|>\n", []).input_ids
    vocabulary = Vocabulary(processor.pad_id, frozenset(), processor.decode)

    def answer(**values: object) -> Result:
        params = GenerationParams.model_validate({"max_new_tokens": 12, **values})
        (result,) = run(StaticEngine(PaddedPhi3Vision(model), vocabulary), [Sample(0, ids, (), params)])
        return result

    free = answer()
    assert (free.finish_reason, free.completion_tokens) == (FinishReason.LENGTH, 12)
    stopped = answer(stop_token_ids=[free.token_ids[5]])
    first = free.token_ids.index(free.token_ids[5])
    assert (stopped.finish_reason, stopped.completion_tokens) == (FinishReason.STOP, first + 1)
    assert stopped.token_ids == free.token_ids[:first]
    assert free.text is not None
    stop = free.text[8:11]
    cut = answer(stop=[stop])
    assert cut.finish_reason == FinishReason.STOP
    assert cut.text == free.text[: free.text.index(stop)]


def test_a_row_that_cannot_be_run_fails_alone(model: Phi3VisionModel, processor: Phi3VisionProcessor) -> None:
    samples = make_samples(processor, 3, 5)
    good = answers(model, processor, samples, 5, "left")
    bad = dataclasses.replace(samples[2], input_ids=[1, -1, 5], pictures=())
    vocabulary = Vocabulary(processor.pad_id, frozenset(processor.stop_ids), processor.decode)
    engine = StaticEngine(PaddedPhi3Vision(model), vocabulary)
    results = {result.key: result for result in run(engine, [*samples[:2], bad, *samples[3:]])}
    error = results[2].error
    assert error is not None
    assert error.code == ErrorCode.GENERATION_FAILED
    assert {key: _essence(result) for key, result in results.items() if key != 2} == {
        key: answer for key, answer in good.items() if key != 2
    }


def test_the_golden_pictures_in_one_batch(tiny_folder: Path) -> None:
    import json

    processor = Phi3VisionProcessor.from_pretrained(tiny_folder, num_crops=4)
    model = weights.load(tiny_folder, dtype=torch.float32)
    items = json.loads((GOLDEN / "e2e.json").read_text())["tiny-mha.nc4"]["items"]
    samples = []
    for key, item in enumerate(items):
        encoded = processor.process(item["text"], [Image.open(GOLDEN / "images" / name) for name in item["images"]])
        pictures = [Picture(f"{key}/{k}".encode(), {PIXELS: pixels}) for k, pixels in enumerate(encoded.pictures)]
        samples.append(Sample(key, encoded.input_ids, pictures, GenerationParams(max_new_tokens=16)))
    vocabulary = Vocabulary(processor.pad_id, frozenset(), processor.decode)
    results = {result.key: result for result in run(StaticEngine(PaddedPhi3Vision(model), vocabulary), samples)}
    assert [list(results[key].token_ids) for key in range(len(items))] == [i["greedy16_no_eos"] for i in items]


@given(
    st.lists(st.builds(SampleSize, st.integers(1, 5000), st.integers(1, 500)), min_size=1, max_size=40),
    st.integers(1, 9),
    st.integers(64, 20_000),
)
def test_batches_keep_to_their_budget(sizes: list[SampleSize], max_rows: int, max_tokens: int) -> None:
    ordered = sorted(sizes, key=lambda size: size.prompt_tokens)
    num_rows = batch_rows(ordered, max_rows, max_tokens)
    taken = ordered[-num_rows:]
    width = max(s.prompt_tokens for s in taken) + max(s.max_new_tokens for s in taken)
    assert 1 <= num_rows <= max_rows
    assert num_rows == 1 or num_rows * width <= max_tokens
    assert -(-len(sizes) // max_rows) <= num_batches(sizes, max_rows, max_tokens) <= len(sizes)


def test_what_is_not_finished_when_a_batch_is_overdue_fails(
    model: Phi3VisionModel, processor: Phi3VisionProcessor
) -> None:
    vocabulary = Vocabulary(processor.pad_id, frozenset(), processor.decode)
    rows = [Sample(key, [1, 5 + key], (), GenerationParams(max_new_tokens=count)) for key, count in enumerate([1, 90])]
    done = {
        result.key: result
        for result in run(StaticEngine(PaddedPhi3Vision(model), vocabulary, row_deadline_s=1e-9), rows)
    }
    assert done[0].error is None
    assert done[1].error is not None
    assert done[1].error.code == ErrorCode.DEADLINE


class Failing:
    """A model whose first pass over a batch raises."""

    def __init__(self, model: PaddedPhi3Vision, error: Exception) -> None:
        self._model = model
        self._error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, *args: Any) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), ErrorCode.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), ErrorCode.OUT_OF_MEMORY),
        (MemoryError(), ErrorCode.OUT_OF_MEMORY),
        (ValueError("odd"), ErrorCode.GENERATION_FAILED),
    ],
)
def test_why_a_row_fails_is_said(model: Phi3VisionModel, error: Exception, code: ErrorCode) -> None:
    vocabulary = Vocabulary(0, frozenset(), str)
    (result,) = run(StaticEngine(Failing(PaddedPhi3Vision(model), error), vocabulary), [Sample(0, [1, 5], (), GREEDY)])
    assert result.error is not None
    assert result.error.code == code


def test_a_lost_device_is_no_rows_fault(model: Phi3VisionModel) -> None:
    lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    engine = StaticEngine(Failing(PaddedPhi3Vision(model), lost), Vocabulary(0, frozenset(), str))
    with pytest.raises(torch.AcceleratorError):
        list(run(engine, [Sample(0, [1, 5], (), GREEDY), Sample(1, [1, 6], (), GREEDY)]))
