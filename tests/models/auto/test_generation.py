"""What the engine does with logits works for a library model as for our own: sampling, stops, penalties, 16 bits."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

from ray_job.engine.interface import Vocabulary
from ray_job.models.auto.families.table import family_of
from ray_job.models.auto.packed import PackedAuto
from ray_job.models.auto.probe import library_logits, packed_logits
from ray_job.models.casting import cast_layerwise
from ray_job.rows import FinishReason, Sample
from tests.models.auto.library_rows import Family, family, tokenizer_of
from tests.models.auto.settings import SETTINGS, answers, run

NAME = "qwen2_5_vl"
SOME = ("together", "shuffled, steps of 7")


@pytest.fixture(scope="module")
def made() -> Family:
    return family(NAME)


@pytest.fixture(scope="module")
def packed(made: Family) -> PackedAuto:
    model = copy.deepcopy(made.model)
    return family_of(model.config.model_type)(model, made.normalization)


def asked(sample: Sample, **params: Any) -> Sample:
    return dataclasses.replace(sample, params=sample.params.model_copy(update=params))


def test_sampled_rows_depend_on_their_seed_alone(made: Family, packed: PackedAuto) -> None:
    first = [asked(sample, temperature=1.2, top_p=0.95, top_k=50, seed=sample.key) for sample in made.samples]
    other = [asked(sample, temperature=1.2, top_p=0.95, top_k=50, seed=sample.key + 100) for sample in made.samples]
    alone = answers(packed, first, **SETTINGS["one by one"])
    assert all(answers(packed, first, **SETTINGS[setting]) == alone for setting in SOME)
    assert answers(packed, other, **SETTINGS["together"]) != alone
    assert alone != made.answers


def test_a_repetition_penalty_is_the_librarys(made: Family, packed: PackedAuto) -> None:
    """Its own counts the tokens of the prompt, those in a picture's places included; ours, those of text."""
    text = [sample for sample in made.samples if not sample.pictures]
    penalised = [asked(sample, repetition_penalty=1.7) for sample in text]
    found = answers(packed, penalised, **SETTINGS["together"])
    for sample in text:
        ids = torch.tensor([sample.input_ids])
        most = sample.params.max_new_tokens
        expected = made.model.generate(
            ids, max_new_tokens=most, do_sample=False, repetition_penalty=1.7, pad_token_id=256
        )
        assert found[sample.key] == expected[0, ids.shape[1] :].tolist() != made.answers[sample.key]


def test_a_stop_string_ends_an_answer_where_its_text_has_it(made: Family, packed: PackedAuto) -> None:
    tokenizer = tokenizer_of(NAME)
    vocabulary = Vocabulary(256, frozenset(), lambda ids: str(tokenizer.decode(ids)))
    longest = max(made.samples, key=lambda sample: sample.params.max_new_tokens)
    text = tokenizer.decode(made.answers[longest.key])
    stop = next(text[start : start + 2] for start in range(4, 40) if text[start : start + 2].isalnum())
    for setting in SOME:
        rows = [asked(sample, stop=(stop,)) for sample in made.samples]
        result = run(packed, rows, vocabulary, **SETTINGS[setting])[longest.key]
        assert result.text == text[: text.index(stop)]
        assert result.finish_reason == FinishReason.STOP
        assert result.completion_tokens < longest.params.max_new_tokens


def test_a_stop_id_ends_an_answer_and_is_no_part_of_it(made: Family, packed: PackedAuto) -> None:
    sample = max(made.samples, key=lambda each: each.params.max_new_tokens)
    answer = made.answers[sample.key]
    stop = answer[4]
    vocabulary = Vocabulary(256, frozenset([stop]), lambda ids: "")
    result = run(packed, made.samples, vocabulary, **SETTINGS["together"])[sample.key]
    assert list(result.token_ids) == answer[: answer.index(stop)]
    assert result.finish_reason == FinishReason.STOP


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_logits_in_16_bits_are_within_rounding(made: Family, dtype: torch.dtype) -> None:
    """Of the float32 model with the same, rounded weights, as the library's own are."""
    model = copy.deepcopy(made.model).to(dtype)
    exact = copy.deepcopy(model).to(torch.float32)
    packed = family_of(model.config.model_type)(model, made.normalization)
    ours_SV = packed_logits(packed, made.samples)[: len(made.samples)]
    exactly = family_of(model.config.model_type)(exact, made.normalization)
    exact_SV = packed_logits(exactly, made.samples)[: len(made.samples)]
    with packed.released():
        theirs_SV = torch.stack([library_logits(packed, model, sample)[0] for sample in made.samples])
    ours, theirs = ((each - exact_SV).abs().amax() / exact_SV.abs().amax() for each in (ours_SV, theirs_SV))
    assert 0 < ours < 2 * theirs
    found = answers(packed, made.samples, **SETTINGS["together"])
    same = sum(
        found[sample.key][0] == int(row_V.argmax()) for sample, row_V in zip(made.samples, theirs_SV, strict=True)
    )
    assert same >= len(made.samples) - 1  # one near tie


def test_weights_kept_in_bfloat16_and_computed_in_float32(made: Family) -> None:
    """Token for token what the float32 model with the same, rounded weights answers, whatever the step."""
    rounded = copy.deepcopy(made.model).to(torch.bfloat16)
    exact = copy.deepcopy(rounded).to(torch.float32)
    cast_layerwise(rounded, torch.float32)
    kept = family_of(NAME)(rounded, made.normalization)
    assert kept.dtype == torch.float32
    expected = answers(family_of(NAME)(exact, made.normalization), made.samples, **SETTINGS["one by one"])
    assert all(answers(kept, made.samples, **SETTINGS[setting]) == expected for setting in SOME)
