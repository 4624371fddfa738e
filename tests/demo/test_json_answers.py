"""Questions answered in JSON: only where a scene has one answer, in the form of its schema, compared by content."""

from __future__ import annotations

import json
import random
from collections import Counter

import jsonschema
import pytest

from ray_job.demo import questions
from ray_job.demo.json_answers import (
    SCHEMAS,
    SHAPES_QUESTION,
    SHAPES_SCHEMA,
    TEXT_QUESTION,
    TEXT_SCHEMA,
    is_same_json,
    json_question,
)
from ray_job.demo.pictures import Scene, places_scene, shapes_scene, text_scene
from ray_job.demo.questions import QA, Example, make_example, make_split, split_seed

EXAMPLES = tuple(make_split("test", 600))
ASKED = [qa for example in EXAMPLES for qa in example.questions if qa.kind == "json"]


def test_answers_are_of_their_schema_compact_and_in_its_order() -> None:
    assert {qa.question for qa in ASKED} == set(SCHEMAS)
    for qa in ASKED:
        schema, content = SCHEMAS[qa.question], json.loads(qa.answer)
        jsonschema.validate(content, schema)
        assert list(content) == list(schema["properties"])
        assert qa.answer == json.dumps(content, separators=(",", ":"))


@pytest.mark.parametrize(
    ("schema", "content"),
    [
        (SHAPES_SCHEMA, {"colour": "red", "shape": "circle", "count": 0}),
        (SHAPES_SCHEMA, {"colour": "red", "shape": "circle", "count": 5}),
        (SHAPES_SCHEMA, {"colour": "red", "shape": "circle"}),
        (SHAPES_SCHEMA, {"colour": "circle", "shape": "red", "count": 1}),
        (TEXT_SCHEMA, {"text": "4", "colour": "red"}),
        (TEXT_SCHEMA, {"text": 407, "colour": "red"}),
        (TEXT_SCHEMA, {"text": "407", "colour": "yellow"}),
        (TEXT_SCHEMA, {"text": "407", "colour": "red", "count": 1}),
    ],
)
def test_schemas_refuse_what_no_scene_shows(schema: dict[str, object], content: dict[str, object]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)


def test_a_scene_is_described_as_one_thing_only_if_it_is_one() -> None:
    rng = random.Random(0)
    found = Counter[bool]()
    for _ in range(300):
        scene = shapes_scene(rng)
        is_uniform = len({(item.colour, item.name) for item in scene.items}) == 1
        asked = json_question(scene)
        assert (asked is not None) == is_uniform
        found[is_uniform] += 1
    assert min(found.values()) > 50
    assert json_question(places_scene(rng, "0123456789")) is None


def test_print_is_text_with_its_zeros() -> None:
    scene: Scene = text_scene(random.Random(0), "007")
    assert json_question(scene) == (TEXT_QUESTION, f'{{"text":"007","colour":"{scene.items[0].colour}"}}')


def test_they_change_no_other_question_of_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = [split_seed("test", index) for index in range(100)]
    before = [make_example(seed) for seed in seeds]
    monkeypatch.setattr(questions, "_JSON_CHANCE", 1.0)
    after = [make_example(seed) for seed in seeds]
    for old, new in zip(before, after, strict=True):
        assert old.scenes == new.scenes
        assert _others(old) == _others(new)
    assert sum(old != new for old, new in zip(before, after, strict=True)) > 10


def _others(example: Example) -> list[QA]:
    return [qa for qa in example.questions if qa.kind != "json"]


def test_they_are_a_few_of_all_questions_and_not_mostly_of_single_shapes() -> None:
    assert 0.02 < len(ASKED) / sum(len(example.questions) for example in EXAMPLES) < 0.08
    counts = Counter(json.loads(qa.answer)["count"] for qa in ASKED if qa.question == SHAPES_QUESTION)
    assert counts[1] < 2 * sum(number for count, number in counts.items() if count > 1)


@pytest.mark.parametrize(
    ("answer", "is_same"),
    [
        ('{"colour":"red","shape":"star","count":1}', True),
        ('{"count": 1,\n "shape": "star", "colour": "red"}', True),
        ('{"colour":"red","shape":"star","count":2}', False),
        ('{"colour":"red","shape":"star","count":true}', False),
        ('{"colour":"red","shape":"star","count":"1"}', False),
        ('{"colour":"red","shape":"star"}', False),
        ('{"colour":"red","shape":"star","count":1', False),
        ("red star", False),
        ("", False),
    ],
)
def test_answers_are_compared_by_what_they_say(answer: str, is_same: bool) -> None:
    assert is_same_json(answer, '{"colour":"red","shape":"star","count":1}') == is_same
