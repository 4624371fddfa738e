"""Answers that have a form: valid, the same in both engines however rows are batched, and no matter to free rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_job.engine.continuous import ContinuousEngine
from ray_job.engine.interface import Engine, Vocabulary, run
from ray_job.engine.sequence import Sequence as Answer
from ray_job.engine.static import StaticEngine
from ray_job.errors import ErrorCode
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.packed import PackedPhi3Vision
from ray_job.models.phi3_vision.padded import PaddedPhi3Vision
from ray_job.rows import FinishReason, Result, Sample
from ray_job.spec import GenerationParams, StructuredOutputs
from tests.engine.automata import SHAPED, Automata, Automaton, line, random_automaton, with_forms
from tests.engine.test_continuous import ENGINES, SHORTAGES, Faulty, by_key, feed
from tests.engine.tiny import STOP_ID, VOCAB, VOCABULARY, alone, essence, samples, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = pytest.mark.parametrize("kind", ["static", "continuous"])


def engine_of(kind: str, vocabulary: Vocabulary = SHAPED, model: Any = None, **options: Any) -> Engine:
    model = model or tiny_model()
    if kind == "static":
        return StaticEngine(PaddedPhi3Vision(model), vocabulary, **options)
    return ContinuousEngine(PackedPhi3Vision(model), vocabulary, **{"max_tokens": 1000, **options})


def row(key: int, automaton: Automaton | None, ids: Sequence[int] = (1, 5, 6), **params: Any) -> Sample:
    form = None if automaton is None else automaton.form
    return Sample(key, [*ids, 4 + key % 50], (), GenerationParams(structured_outputs=form, **params))


def only(kind: str, sample: Sample) -> Result:
    (result,) = run(engine_of(kind), [sample])
    return result


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    options=ENGINES,
    switch=st.sampled_from([4096, 18, 30, 48]),
    share=st.sampled_from([0.3, 1.0]),
)
def test_an_answer_does_not_depend_on_batching(seed: int, options: dict[str, Any], switch: int, share: float) -> None:
    model = tiny_model(switch)
    rng = random.Random(seed)
    rows = with_forms(samples(seed, rng.randint(1, 10)), rng, share)
    expected = alone(model, rows, SHAPED)
    rng.shuffle(rows)
    engine = ContinuousEngine(PackedPhi3Vision(model), SHAPED, **options)
    assert by_key(feed(engine, rows, rng)) == expected
    assert by_key(list(run(engine_of("static", model=model, max_batch_rows=4), rows))) == expected
    free = [sample for sample in rows if sample.params.structured_outputs is None]
    assert alone(model, free) == {sample.key: expected[sample.key] for sample in free}


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), switch=st.sampled_from([4096, 8, 12]))
def test_forced_tokens_are_those_the_model_would_have_been_left(seed: int, switch: int) -> None:
    """Against a model that is asked for every token, without a cache, and may only choose what is allowed."""
    model = tiny_model(switch)
    rng = random.Random(seed)
    automaton = random_automaton(rng)
    sample = row(0, automaton, [1, *rng.choices(range(4, VOCAB), k=3)], max_new_tokens=16)
    expected, reason = masked(model, sample.input_ids, automaton, 16)
    for kind in ("static", "continuous"):
        (result,) = run(engine_of(kind, model=model), [sample])
        assert (list(result.token_ids), result.finish_reason) == (expected, reason)
        assert automaton.holds(expected) or reason == FinishReason.LENGTH


@torch.no_grad()
def masked(
    model: Phi3VisionModel, prompt: Sequence[int], automaton: Automaton, most: int
) -> tuple[list[int], FinishReason]:
    answer: list[int] = []
    while True:
        state = automaton.state_after(answer)
        may_end = state in automaton.ends
        allowed = [*automaton.edges[state], *([STOP_ID] if may_end else [])]
        if allowed == [STOP_ID]:
            return answer, FinishReason.STOP
        if len(answer) == most:
            return answer, FinishReason.LENGTH
        ids = [*prompt, *answer]
        logits_1V = model(
            model.embed_row(torch.tensor(ids))[None],
            position_ids_BL=torch.arange(len(ids))[None],
            is_long_B=torch.tensor([model.config.is_long(len(ids))]),
            logits_to_keep=1,
        )
        token = max(allowed, key=lambda token: float(logits_1V.flatten()[token]))
        if token == STOP_ID:
            return answer, FinishReason.STOP
        answer.append(token)


@pytest.mark.parametrize("temperature", [0.0, 5.0])
@KINDS
def test_every_answer_that_is_not_cut_has_its_form(kind: str, temperature: float) -> None:
    rng = random.Random(3)
    automata = [random_automaton(rng) for _ in range(60)]
    rows = [
        row(key, automaton, max_new_tokens=40, temperature=temperature, seed=key, repetition_penalty=1.2)
        for key, automaton in enumerate(automata)
    ]
    results = {result.key: result for result in run(engine_of(kind), rows)}
    reasons = [results[key].finish_reason for key in range(60)]
    assert reasons.count(FinishReason.STOP) > 40
    for key, automaton in enumerate(automata):
        assert results[key].error is None
        assert automaton.holds(results[key].token_ids) or reasons[key] == FinishReason.LENGTH


@KINDS
def test_a_form_with_one_answer_asks_no_model(kind: str) -> None:
    engine = engine_of(kind)
    rows = [row(0, line([9, 8, 7, 9, 8]), max_new_tokens=5), row(1, line([]))]
    results = by_key(list(run(engine, rows)))
    assert results[0][:4] == ((9, 8, 7, 9, 8), "jihji", FinishReason.STOP, 5)
    assert results[1][:4] == ((), "", FinishReason.STOP, 0)
    stats = engine.stats()
    assert (stats.forced_tokens, stats.prefill_tokens, stats.decode_tokens) == (5, 0, 0)
    assert (stats.rows, stats.mask_s) == (2, 0.0)


@KINDS
def test_forced_tokens_end_at_the_length_and_at_stops(kind: str) -> None:
    automaton = line([9, 8, 7, 9, 8])
    cut = only(kind, row(0, automaton, max_new_tokens=4))
    assert (cut.token_ids, cut.finish_reason, cut.completion_tokens) == ((9, 8, 7, 9), FinishReason.LENGTH, 4)
    stopped = only(kind, row(0, automaton, stop=("hj",)))
    assert (stopped.text, stopped.finish_reason, stopped.completion_tokens) == ("ji", FinishReason.STOP, 4)
    at_token = only(kind, row(0, automaton, stop_token_ids=(7,)))
    assert (at_token.token_ids, at_token.finish_reason, at_token.completion_tokens) == ((9, 8), FinishReason.STOP, 3)


def test_forced_tokens_are_computed_in_one_step() -> None:
    """A choice, ten tokens without one, and a choice: two steps of the model, the first one over the prompt."""
    edges = [{10: 1, 11: 1}, *({20 + state: state + 1} for state in range(1, 11)), {30: 12, 31: 12}, {}]
    engine = engine_of("continuous")
    (result,) = run(engine, [row(0, Automaton(edges, [12]), max_new_tokens=40)])
    assert result.token_ids[1:11] == tuple(range(21, 31))
    stats = engine.stats()
    assert stats.steps == 2
    assert (stats.forced_tokens, stats.prefill_tokens, stats.decode_tokens) == (10, 4 + 11, 0)


@KINDS
def test_a_bad_form_is_its_rows_error(kind: str) -> None:
    bad = replace(row(1, None), params=GenerationParams(structured_outputs=StructuredOutputs(grammar="no")))
    rows = [row(0, line([7, 8])), bad, row(2, None, max_new_tokens=3)]
    results = {result.key: result for result in run(engine_of(kind), rows)}
    error = results[1].error
    assert error is not None
    assert (error.code, error.message) == (ErrorCode.PARAMS_INVALID, "structured_outputs: not an automaton")
    good = [rows[0], rows[2]]
    assert {key: essence(results[key]) for key in (0, 2)} == alone(tiny_model(), good, SHAPED)


@KINDS
def test_without_forms_a_row_that_wants_one_fails(kind: str) -> None:
    (result,) = run(engine_of(kind, VOCABULARY), [row(0, line([7]))])
    assert result.error is not None
    assert result.error.code == ErrorCode.PARAMS_INVALID
    assert "structured_outputs" in result.error.message


@pytest.mark.parametrize("breaks_after", [0, 2])
@KINDS
def test_a_form_that_breaks_fails_its_row_alone(kind: str, breaks_after: int) -> None:
    wide = dict.fromkeys(range(10, 30), 0)
    rows = [row(key, random_automaton(random.Random(key)), max_new_tokens=9) for key in range(4)]
    broken = row(7, Automaton([wide], [0], breaks_after), max_new_tokens=9)
    none_left = row(8, Automaton([{10: 1, 11: 1}, {}], []))
    results = by_key(list(run(engine_of(kind), [*rows[:2], broken, none_left, *rows[2:]])))
    assert [results.pop(7)[-1], results.pop(8)[-1]] == [ErrorCode.GENERATION_FAILED] * 2
    assert results == alone(tiny_model(), rows, SHAPED)


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    failures=st.dictionaries(st.integers(1, 30), SHORTAGES | st.just(ValueError("odd")), min_size=1, max_size=4),
)
def test_a_step_that_fails_takes_no_token_twice(seed: int, failures: dict[int, Exception]) -> None:
    """Steps that fail are run again row by row; a row may fail with one, and no other changes."""
    model = tiny_model()
    rng = random.Random(seed)
    rows = with_forms(samples(seed, 6), rng)
    engine = ContinuousEngine(Faulty(PackedPhi3Vision(model), failures), SHAPED, max_tokens=1000)
    results = by_key(feed(engine, rows, rng))
    expected = alone(model, rows, SHAPED)
    for key, result in results.items():
        assert result == expected[key] or result[-1] == ErrorCode.GENERATION_FAILED
    if not any(isinstance(error, ValueError) for error in failures.values()):
        assert results == expected


def test_fewer_ids_than_the_model_has_logits() -> None:
    """A mask of 32 ids for a model of 61: the others are never chosen by a row with a form."""
    vocabulary = replace(VOCABULARY, forms=Automata(num_words=1))
    rng = random.Random(0)
    rows = [
        row(key, random_automaton(rng, highest_id=31), max_new_tokens=12, temperature=9.0, seed=key)
        for key in range(20)
    ]
    free = [row(key, None, max_new_tokens=12, temperature=9.0, seed=key) for key in range(20, 30)]
    results = {result.key: result for result in run(engine_of("continuous", vocabulary), [*rows, *free])}
    assert all(results[key].error is None and max(results[key].token_ids, default=0) < 32 for key in range(20))
    assert {key: essence(results[key]) for key in range(20, 30)} == alone(tiny_model(), free)


@KINDS
def test_a_job_without_forms_starts_no_thread(kind: str) -> None:
    engine: Any = engine_of(kind)
    list(run(engine, samples(3, 4)))
    assert engine._masks._thread is None


def test_a_token_that_its_form_forbids_is_never_taken() -> None:
    """Neither a text token nor one that ends the answer; a stop id of the row's own ends it whatever the form says."""
    params = GenerationParams(structured_outputs=Automaton([{5: 1, 6: 1}, {5: 2, 6: 2}, {}], [2]).form)
    for forbidden in (9, STOP_ID):
        answer = Answer(Sample(0, [1], (), params), SHAPED, 100)
        answer.begin()
        answer.append(5)
        with pytest.raises(ValueError, match=f"token {forbidden} is not allowed"):
            answer.append(forbidden)
    own = Answer(Sample(0, [1], (), params.model_copy(update={"stop_token_ids": (6,)})), SHAPED, 100)
    own.begin()
    own.append(5)
    own.append(6)
    assert (own.token_ids, own.finish_reason) == ([5], FinishReason.STOP)
