"""Forms over the published tokenizer of Phi-3-Vision, where its files are at hand."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ray_job.models.phi3_vision.processor import Phi3VisionProcessor
from ray_job.spec import StructuredOutputs
from ray_job.structured.matchers import TokenizerForms
from tests.structured.walks import allowed

NUM_IDS = 32_064  # of the model's logits
NUM_KNOWN = 32_045  # of them, those that the tokenizer has
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "grün", "黒"]},
        "name": {"type": "string", "maxLength": 20},
        "count": {"type": "integer", "minimum": 0, "maximum": 30},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{2,5}$"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["colour", "name", "count", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def processor(official: Path) -> Phi3VisionProcessor:
    return Phi3VisionProcessor.from_pretrained(official)


@pytest.fixture(scope="module")
def forms(processor: Phi3VisionProcessor) -> TokenizerForms:
    return TokenizerForms(processor.tokenizer_json, NUM_IDS, processor.stop_ids, processor.decode, threads=1)


def walk(forms: TokenizerForms, processor: Phi3VisionProcessor, seed: int, **form: Any) -> str:
    """An answer made by choosing at random; its text."""
    rng = random.Random(seed)
    matcher, ids = forms.matcher(StructuredOutputs.model_validate(form), 200), list[int]()
    while not matcher.is_complete:
        forced = matcher.forced_ids()
        if not forced:
            free = allowed(forms, matcher)
            assert max(free) < NUM_KNOWN
            forced = [rng.choice(free)]
        for token_id in forced:
            matcher.take(token_id)
        ids += forced
        if ids[-1] in processor.stop_ids:
            return processor.decode(ids[:-1])
    return processor.decode(ids)


@pytest.mark.parametrize("seed", range(20))
def test_every_answer_conforms(forms: TokenizerForms, processor: Phi3VisionProcessor, seed: int) -> None:
    jsonschema.validate(json.loads(walk(forms, processor, seed, json=SCHEMA)), SCHEMA)
    choices = ["yes", "no", " maybe", "日本語"]
    assert walk(forms, processor, seed, choice=choices) in choices


def test_both_stop_ids_end_an_answer_and_a_dropped_space_may_begin_it(
    forms: TokenizerForms, processor: Phi3VisionProcessor
) -> None:
    matcher = forms.matcher(StructuredOutputs.model_validate({"regex": "a+"}), 10)
    first = {processor.decode([token_id]) for token_id in allowed(forms, matcher)}
    assert "a" in first
    assert all(not text.strip("a") for text in first), "of the space alone nothing is left"
    begins = [token_id for token_id in allowed(forms, matcher) if processor.decode([token_id, token_id]) == "a a"]
    assert len(begins) == 1, "`▁a`, whose space is dropped at the beginning"
    matcher.take(begins[0])
    assert set(processor.stop_ids) <= set(allowed(forms, matcher))
