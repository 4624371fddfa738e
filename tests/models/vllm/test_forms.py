"""Answers with a form over vLLM: of the form, and our engine's texts. Needs vLLM."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from ray_job.bench.agreement import samples
from ray_job.engine.interface import Engine, run
from ray_job.errors import ErrorCode
from ray_job.models.engines import load_engine
from ray_job.models.loading import load_processor
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor
from ray_job.rows import FinishReason, Result, Sample
from ray_job.spec import GenerationParams, JobSpec, ModelSpec

from .conftest import PLACEMENT

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]
COLOURS = ["red", "blue", "green", "a colour"]
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": COLOURS}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
FORMS: dict[str, Any] = {
    "json": {"json": SCHEMA},
    "regex": {"regex": "[a-z]{2,6}( [0-9])?"},
    "choice": {"choice": COLOURS},
    "grammar": {"grammar": 'start: COLOUR ("!" | "?")?\nCOLOUR: "red" | "blue" | "green"'},
}
BROKEN: dict[str, Any] = {"grammar": {"grammar": "start: nothing"}, "json": {"json": {"type": "text"}}}
MOST_TIES = 1


@pytest.fixture(scope="module")
def rows() -> list[Sample]:
    processor = load_processor(ModelSpec())
    assert isinstance(processor, Phi3VisionProcessor)
    return samples(processor, 100)[-16:]


def with_form(rows: list[Sample], form: dict[str, Any] | None, first_key: int = 0) -> list[Sample]:
    params = GenerationParams(max_new_tokens=32, structured_outputs=form)  # type: ignore[arg-type]
    return [dataclasses.replace(row, key=first_key + place, params=params) for place, row in enumerate(rows)]


def answers(engine: Engine, asked: list[Sample]) -> dict[int, Result]:
    return {result.key: result for result in run(engine, asked)}


def is_of(name: str, text: str | None) -> bool:
    assert text is not None
    if name == "json":
        value = json.loads(text)
        return set(value) == {"colour", "count"} and value["colour"] in COLOURS and 0 <= value["count"] <= 99
    if name == "regex":
        return re.fullmatch(FORMS[name]["regex"], text) is not None
    return text in COLOURS if name == "choice" else text.rstrip("!?") in COLOURS[:3]


@pytest.mark.parametrize("name", FORMS)
def test_answers_are_of_the_form_and_our_engines(name: str, demo_engine: Engine, rows: list[Sample]) -> None:
    """With free rows beside them, whose answers stay what they are."""
    free = with_form(rows[:4], None, 100)
    asked = [*with_form(rows, FORMS[name]), *free]
    ours = load_engine(JobSpec.from_dict({"input": {"path": "in"}, "output": {"path": "out"}}), PLACEMENT)
    found, expected = answers(demo_engine, asked), answers(ours, asked)
    formed = {key: result for key, result in found.items() if key < 100}
    assert all(result.finish_reason == FinishReason.STOP for result in formed.values()), formed
    assert all(is_of(name, result.text) for result in formed.values()), formed
    assert {row.key: found[row.key].text for row in free} == {row.key: expected[row.key].text for row in free}
    differing = {key: (found[key].text, expected[key].text) for key in formed if found[key].text != expected[key].text}
    assert len(differing) <= MOST_TIES, differing


@pytest.mark.parametrize("name", BROKEN)
def test_a_form_that_is_refused_is_its_rows_error(name: str, demo_engine: Engine, rows: list[Sample]) -> None:
    broken = with_form(rows[:1], BROKEN[name], 50)
    beside = with_form(rows[1:4], FORMS["choice"])
    found = answers(demo_engine, [*broken, *beside])
    error = found.pop(50).error
    assert error is not None
    assert error.code == ErrorCode.PARAMS_INVALID
    assert error.message.startswith(f"structured_outputs.{name}: ")
    assert all(result.text in COLOURS for result in found.values())
