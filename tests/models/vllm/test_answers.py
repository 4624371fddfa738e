"""vLLM answers as this package's engine does: tokens, texts, reasons, counts, errors. Needs vLLM."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from ray_job.bench.agreement import samples
from ray_job.engine.interface import Engine, run
from ray_job.errors import ErrorCode
from ray_job.models.engines import load_engine
from ray_job.models.loading import load_processor
from ray_job.models.phi3_vision.processor import PIXELS, Phi3VisionProcessor
from ray_job.rows import FinishReason, Picture, Result, Sample
from ray_job.spec import GenerationParams, JobSpec, ModelSpec

from .conftest import PLACEMENT, vllm_spec

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]
NUM_ROWS = 60


@pytest.fixture(scope="module")
def processor() -> Phi3VisionProcessor:
    found = load_processor(ModelSpec())
    assert isinstance(found, Phi3VisionProcessor)
    return found


@pytest.fixture(scope="module")
def rows(processor: Phi3VisionProcessor) -> list[Sample]:
    """With no picture, one, or two."""
    return samples(processor, 100)[-NUM_ROWS:]


@pytest.fixture(scope="module")
def ours() -> Engine:
    pytest.importorskip("vllm")
    spec = JobSpec.from_dict({"input": {"path": "in"}, "output": {"path": "out"}})
    return load_engine(spec, PLACEMENT)


def answers(engine: Engine, asked: Sequence[Sample]) -> dict[int, Result]:
    """By key, without what a clock says."""
    return {result.key: dataclasses.replace(result, latency_ms=0.0) for result in run(engine, asked)}


def with_params(sample: Sample, **params: object) -> Sample:
    return dataclasses.replace(sample, params=GenerationParams.model_validate(params))


def test_greedy_answers_are_our_engines(demo_engine: Engine, ours: Engine, rows: list[Sample]) -> None:
    expected, found = answers(ours, rows), answers(demo_engine, rows)
    assert found == expected
    assert {len(row.pictures) for row in rows} >= {1, 2}
    assert all(result.finish_reason == FinishReason.STOP for result in found.values())


@pytest.mark.parametrize(
    "params",
    [
        {"max_new_tokens": 1},
        {"max_new_tokens": 3},
        {"max_new_tokens": 16, "stop": ["e"]},
        {"max_new_tokens": 16, "stop": [" ", "er"]},
        {"max_new_tokens": 16, "stop_token_ids": [537, 400, 401, 402]},
        {"max_new_tokens": 16, "repetition_penalty": 1.5},
        {"max_new_tokens": 16, "repetition_penalty": 0.5},
        {"max_new_tokens": 16, "temperature": 0.9, "top_k": 1, "seed": 3},
    ],
)
def test_parameters_mean_what_they_mean_elsewhere(
    demo_engine: Engine, ours: Engine, rows: list[Sample], params: dict[str, object]
) -> None:
    asked = [with_params(row, **params) for row in rows[:24]]
    assert answers(demo_engine, asked) == answers(ours, asked)


def test_a_sampled_answer_is_its_seeds_whoever_runs_beside_it(demo_engine: Engine, rows: list[Sample]) -> None:
    def asked(seed: int, **params: object) -> Sample:
        sampled = {"temperature": 2.0, "seed": seed, "max_new_tokens": 12, **params}
        return Sample(seed, list(range(20, 60)), [], GenerationParams.model_validate(sampled))

    together = answers(demo_engine, [asked(seed) for seed in range(24)])
    beside = [with_params(row, temperature=1.7, seed=row.key, max_new_tokens=5) for row in rows[:8]]
    again = {}
    for seed in reversed(range(24)):
        again[seed] = answers(demo_engine, [*beside, asked(seed, stop=["never said"])])[seed]
    assert again == together
    assert all(result.error is None for result in together.values())
    assert len({tuple(result.token_ids) for result in together.values()}) > 12


def test_text_alone_and_pictures_in_any_order(
    demo_engine: Engine, ours: Engine, processor: Phi3VisionProcessor, rows: list[Sample]
) -> None:
    two = next(row for row in rows if len(row.pictures) == 2)
    swapped = [-3 - token if token < 0 else token for token in two.input_ids]
    asked = [
        Sample(0, [token for token in two.input_ids if token >= 0], [], GenerationParams(max_new_tokens=8)),
        Sample(1, swapped, two.pictures[::-1], GenerationParams(max_new_tokens=8)),
    ]
    assert answers(demo_engine, asked) == answers(ours, asked)


def test_what_vllm_cannot_take_is_that_rows_error(demo_engine: Engine, ours: Engine, rows: list[Sample]) -> None:
    long = dataclasses.replace(rows[0], key=100, input_ids=[*rows[0].input_ids, *[400] * 4096])
    broken = dataclasses.replace(rows[1], key=101, pictures=[])
    square = Picture(b"not crops", {PIXELS: rows[2].pictures[0].arrays[PIXELS][:-1]})
    uncut = dataclasses.replace(rows[2], key=102, pictures=[square])
    found = answers(demo_engine, [*rows[:8], long, broken, uncut])
    errors = {key: found.pop(key).error for key in (100, 101, 102)}
    assert found == answers(ours, rows[:8])
    assert errors[100] is not None
    assert errors[100].code == ErrorCode.PROMPT_TOO_LONG
    assert "max_model_len" in errors[100].message
    for key in (101, 102):
        error = errors[key]
        assert error is not None
        assert (error.code, str(error.stage)) == (ErrorCode.GENERATION_FAILED, "generate")


def test_a_row_that_takes_too_long_is_an_error_and_the_others_go_on(rows: list[Sample], demo_engine: Engine) -> None:
    demo_engine._row_deadline_s = 0.0  # type: ignore[attr-defined]
    try:
        found = answers(demo_engine, [with_params(row, max_new_tokens=7) for row in rows[:3]])
    finally:
        demo_engine._row_deadline_s = None  # type: ignore[attr-defined]
    assert {result.error and result.error.code for result in found.values()} == {ErrorCode.DEADLINE}
    assert demo_engine.slots().used == 0


def test_it_counts_what_it_did(rows: list[Sample], demo_engine: Engine) -> None:
    before = demo_engine.stats()
    asked = [with_params(row, max_new_tokens=4, stop=["counted"]) for row in rows[:6]]
    found = answers(demo_engine, [*asked, dataclasses.replace(asked[0], key=99)])
    after = demo_engine.stats()
    assert after.rows - before.rows == 6
    assert after.duplicate_rows - before.duplicate_rows == 1
    assert found[99].token_ids == found[asked[0].key].token_ids
    assert after.prompt_tokens - before.prompt_tokens == sum(len(row.input_ids) for row in asked)
    computed = after.prefill_tokens + after.prefix_tokens_reused
    assert computed - before.prefill_tokens - before.prefix_tokens_reused == after.prompt_tokens - before.prompt_tokens
    assert after.max_tokens > 10_000
    assert after.prefill_s > before.prefill_s
    assert demo_engine.slots().total == vllm_spec().batching.max_batch_rows
