"""Where an answer ends: stop strings are found at the same token whether or not the whole text is made each time."""

from __future__ import annotations

from collections.abc import Sequence as Ids
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_job.engine import sequence as module
from ray_job.engine.interface import Vocabulary
from ray_job.engine.sequence import Sequence
from ray_job.rows import FinishReason, Sample
from ray_job.spec import GenerationParams

# Tokens without text, of one character, of several, and a leading space that a text's beginning drops.
PIECES = ["", "", "a", "b", "ab", " a", "bab", "xyz"]


def detokenize(ids: Ids[int]) -> str:
    return "".join(PIECES[i] for i in ids).removeprefix(" ")


@given(
    st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=120),
    st.lists(st.text("abxyz ", min_size=1, max_size=6), min_size=1, max_size=3),
)
def test_a_stop_string_ends_the_answer_where_its_text_first_holds_it(ids: list[int], stops: list[str]) -> None:
    vocabulary = Vocabulary(pad_id=0, stop_ids=frozenset(), detokenize=detokenize)
    params = GenerationParams(max_new_tokens=1000, stop=tuple(stops))
    sequence = Sequence(Sample(0, [1], (), params), vocabulary, max_len=10_000)
    for count, token in enumerate(ids, start=1):
        sequence.append(token)
        text = detokenize(ids[:count])
        found = [text.find(stop) for stop in stops if stop in text]
        assert sequence.is_finished == bool(found)
        if found:
            assert sequence.result().text == text[: min(found)]
            return


def sequence_of(prompt: list[int], max_len: int = 1000, **params: Any) -> Sequence:
    vocabulary = Vocabulary(pad_id=0, stop_ids=frozenset({7}), detokenize=detokenize)
    return Sequence(Sample(4, prompt, (), GenerationParams(**params)), vocabulary, max_len)


def fed(sequence: Sequence, ids: list[int]) -> tuple[str | None, FinishReason | None, tuple[int, ...], int]:
    """Text, reason, ids and number of tokens of an answer that ends with the last of these tokens and not before."""
    for token in ids:
        assert not sequence.is_finished
        sequence.append(token)
    result = sequence.result()
    assert (result.key, result.prompt_tokens) == (4, sequence.prompt_len)
    return result.text, result.finish_reason, result.token_ids, result.completion_tokens


def test_an_answer_ends_at_its_length() -> None:
    assert fed(sequence_of([1], max_new_tokens=2), [2, 3]) == ("ab", FinishReason.LENGTH, (2, 3), 2)
    assert fed(sequence_of([1] * 5, max_len=7), [2, 3]) == ("ab", FinishReason.LENGTH, (2, 3), 2)


def test_an_answer_ends_at_a_stop_token_which_is_no_part_of_it() -> None:
    assert fed(sequence_of([1]), [2, 3, 7]) == ("ab", FinishReason.STOP, (2, 3), 3)
    assert fed(sequence_of([1], stop_token_ids=(4,)), [2, 4]) == ("a", FinishReason.STOP, (2,), 2)
    assert fed(sequence_of([1], max_new_tokens=2), [2, 7]) == ("a", FinishReason.STOP, (2,), 2)


def test_a_stop_string_at_the_last_token_is_a_stop() -> None:
    assert fed(sequence_of([1], max_new_tokens=2, stop=("b",)), [2, 3]) == ("a", FinishReason.STOP, (2, 3), 2)


def test_the_penalty_sees_the_text_tokens_of_prompt_and_answer() -> None:
    sequence = sequence_of([1, -1, -2, 0, 5], repetition_penalty=1.1)
    sequence.append(2)
    assert sequence.needs_seen_ids
    assert sequence.all_ids == [1, -1, -2, 0, 5, 2]
    assert sequence.text_ids == [1, 0, 5, 2]
    assert not sequence_of([1]).needs_seen_ids


def test_latency_is_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = sequence_of([1], max_new_tokens=1)
    sequence.started_s = 10.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 12.5))
    sequence.append(2)
    assert sequence.result().latency_ms == 2500.0
