"""A thousand answers under each of twelve schemas: all of them valid, and the same in both engines.

The weights are random, so that answers wander through all that a schema allows; the tokenizer is the demo's.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

import ray_job
from ray_job.engine.continuous import ContinuousEngine
from ray_job.engine.interface import Engine, Vocabulary, run
from ray_job.engine.static import StaticEngine
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.packed import PackedPhi3Vision
from ray_job.models.phi3_vision.padded import PaddedPhi3Vision
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor
from ray_job.models.phi3_vision.weights import init_weights
from ray_job.rows import FinishReason, Sample
from ray_job.spec import GenerationParams, StructuredOutputs
from ray_job.structured.matchers import TokenizerForms
from tests.engine.tiny import essence, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

DEMO = Path(ray_job.__file__).parent / "demo" / "model"
NUM_ANSWERS = 1000


def record(optional: Sequence[str] = (), **properties: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


WORD = {"type": "string", "maxLength": 8}
SCHEMAS: dict[str, Any] = {
    "flat": record(colour={"enum": ["red", "green", "blue"]}, count={"type": "integer", "minimum": 0, "maximum": 9}),
    "nested": record(outer=record(inner=record(deep={"type": "boolean"}, word=WORD), flag={"type": "boolean"})),
    "arrays": record(items={"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 2, "maxItems": 5}),
    "objects in arrays": {"type": "array", "items": record(a=WORD, b={"type": "null"}), "minItems": 1, "maxItems": 3},
    "pattern": record(code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}(x|yz)?$"}),
    "numbers": record(
        whole={"type": "integer", "minimum": -120, "maximum": 4000},
        share={"type": "number", "minimum": 0, "exclusiveMaximum": 1, "multipleOf": 0.25},
    ),
    "optional": record(["a", "c"], a=WORD, b={"type": "boolean"}, c={"type": "integer", "minimum": 1, "maximum": 12}),
    "nullable": record(a={"type": ["string", "null"], "maxLength": 4}, b={"anyOf": [{"type": "null"}, WORD]}),
    "union": {"anyOf": [record(kind={"const": "a"}, x=WORD), record(kind={"const": "b"}, y={"type": "boolean"})]},
    "references": {
        "$defs": {"point": record(x={"enum": [0, 1]}, y={"enum": [0, 1]})},
        **record(start={"$ref": "#/$defs/point"}, end={"$ref": "#/$defs/point"}),
    },
    "other scripts": record(farbe={"enum": ["größe", "빨강", "青い鳥", "🛑"]}, ключ=WORD),
    "formats": record(at={"type": "string", "format": "ipv4"}, id={"type": "string", "format": "uuid"}),
}


@functools.cache
def model() -> Phi3VisionModel:
    vocab_size = json.loads((DEMO / "config.json").read_text())["vocab_size"]
    config = replace(tiny_model().config, vocab_size=vocab_size)
    found = Phi3VisionModel(config).eval()
    with torch.no_grad():
        init_weights(found, seed=2)
    return found


@functools.cache
def vocabulary() -> Vocabulary:
    processor = Phi3VisionProcessor.from_pretrained(DEMO)
    forms = TokenizerForms(
        (DEMO / "tokenizer.json").read_text, model().config.vocab_size, processor.stop_ids, processor.decode, threads=1
    )
    return Vocabulary(processor.pad_id, frozenset(processor.stop_ids), processor.decode, forms)


def static() -> Engine:
    return StaticEngine(PaddedPhi3Vision(model()), vocabulary(), max_batch_rows=64)


def continuous(prefix_sharing: bool) -> Engine:
    return ContinuousEngine(
        PackedPhi3Vision(model()),
        vocabulary(),
        max_slots=64,
        max_tokens=20_000,
        prefix_sharing=prefix_sharing,
        min_shared_tokens=8,
    )


def questions(schema: Any, seed: int, count: int) -> list[Sample]:
    """Half of them greedy, half sampled; some beginnings shared."""
    rng = random.Random(seed)
    beginnings = [rng.choices(range(10, 500), k=rng.randint(4, 16)) for _ in range(5)]
    found = []
    for key in range(count):
        ids = [*rng.choice(beginnings), *rng.choices(range(10, 500), k=rng.randint(1, 8))]
        params = GenerationParams(
            max_new_tokens=240,
            temperature=rng.choice([0.0, 1.0]),
            top_k=rng.choice([0, 0, 9]),
            seed=rng.randrange(10**6),
            structured_outputs=StructuredOutputs(json=schema),
        )
        found.append(Sample(key, ids, (), params))
    return found


def valid_answers(engine: Engine, schema: Any, rows: Sequence[Sample]) -> dict[int, tuple[object, ...]]:
    """By key; each is whole and conforms."""
    results = list(run(engine, rows))
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    for result in results:
        assert result.error is None
        assert result.finish_reason == FinishReason.STOP
        assert result.text is not None
        validator.validate(json.loads(result.text))
    found = {result.key: essence(result) for result in results}
    assert len(found) == len(results) == len(rows)
    return found


def check(schema: Any, count: int) -> None:
    """Answers `count` questions in three ways: each time all are valid, and they are the same.

    Random weights leave near ties, down to 1e-7 between probabilities, which rounding may turn: one answer in 10,000.
    """
    rows = questions(schema, len(json.dumps(schema)), count)
    expected = valid_answers(continuous(prefix_sharing=True), schema, rows)
    assert count < 100 or len({text for _, text, *_ in expected.values()}) > 3
    for engine in (continuous(prefix_sharing=False), static()):
        found = valid_answers(engine, schema, rows)
        assert sum(found[key] != expected[key] for key in found) <= count // 500


def test_some_answers_under_all_schemas() -> None:
    for schema in SCHEMAS.values():
        check(schema, 4)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_thousand_answers_under_each_schema(name: str) -> None:
    check(SCHEMAS[name], NUM_ANSWERS)
