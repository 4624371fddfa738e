"""The form of a job's answers, wherever the spec has it, and what is wrong with it before anything starts."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from ray_job.errors import SpecError
from ray_job.spec import JobSpec, StructuredOutputs
from ray_job.stages.open_job import open_job

SCHEMA = {"type": "object", "properties": {"no": {"enum": ["yes", "on", "12:30", "2026-11-29", 1.5, True, None]}}}
IN_YAML = "{type: object, properties: {no: {enum: [yes, on, 12:30, 2026-11-29, 1.5, true, null]}}}"
MINIMAL = "input: {path: in}\noutput: {path: out}\n"


class Count(BaseModel):
    colour: str
    count: int | None = None


def spec_of(form: Any) -> JobSpec:
    return JobSpec.from_dict(
        {"input": {"path": "in"}, "output": {"path": "out"}, "generation": {"structured_outputs": form}}
    )


def form_of(form: Any) -> StructuredOutputs | None:
    return spec_of(form).generation.params.structured_outputs


def problems(form: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        spec_of(form)
    return caught.value.problems


def test_a_schema_is_inline_in_a_file_or_a_model(tmp_path: Path) -> None:
    expected = StructuredOutputs.model_validate({"json": SCHEMA})
    (tmp_path / "a.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "a.yaml").write_text(IN_YAML)
    (tmp_path / "job.yaml").write_text(f"{MINIMAL}generation: {{structured_outputs: {{json: {IN_YAML}}}}}\n")
    plain = tmp_path / "plain.yaml"
    plain.write_text(MINIMAL)
    found = [form_of({"json": str(tmp_path / name)}) for name in ("a.json", "a.yaml")]
    found += [form_of({"json": SCHEMA}), form_of({"json": json.dumps(SCHEMA)}), form_of({"json": tmp_path / "a.json"})]
    found.append(JobSpec.from_yaml(tmp_path / "job.yaml").generation.structured_outputs)
    for value in (str(tmp_path / "a.yaml"), IN_YAML):
        spec = JobSpec.from_yaml(plain, [f"generation.structured_outputs.json={value}"])
        found.append(spec.generation.structured_outputs)
    assert found == [expected] * 8
    assert form_of({"json": Count}) == StructuredOutputs.model_validate({"json": Count.model_json_schema()})
    assert pickle.loads(pickle.dumps(spec_of({"json": Count}))) == spec_of({"json": Count})


def test_words_of_choices_are_texts(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(MINIMAL)
    spec = JobSpec.from_yaml(tmp_path / "job.yaml", ["generation.structured_outputs.choice=[yes, no, true, 12:30, 7]"])
    assert spec.generation.structured_outputs == StructuredOutputs(choice=("yes", "no", "true", "12:30", "7"))


def test_a_job_without_a_form_has_the_fingerprint_it_had() -> None:
    fields = JobSpec.from_dict({"input": {"path": "in"}, "output": {"path": "out"}}).answer_fields()
    assert "structured_outputs" not in fields["generation"]
    assert spec_of({"json": True}).answer_fields() != fields


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"json": "a.txt"}, ": json: 'a.txt' is no schema; give it inline, or the path of a .json or .yaml file"),
        ({"json": "none.json"}, ": json: none.json: no such file; give the path from the folder where the job is "),
        ({"json": 3}, ".json: got 3; allowed: a JSON Schema (an object), or true for any object"),
        ({"json": False}, ".json: got False; allowed: a JSON Schema"),
        ({"json": {1: 2}}, ".json: the name 1 is no text; put it in quotes"),
        ({"json": {"minimum": float("inf")}}, ".json: inf is no number of JSON; leave it out"),
        ({"json": {"enum": ["\ud800"]}}, ": json: holds half of a surrogate pair, which is no character; remove it"),
        ({"choice": []}, ".choice: an empty list; give the texts that an answer may be"),
        ({"choice": [1.5]}, ".choice.0: got 1.5; allowed: a valid string"),
        ({"jsn": 1}, ".jsn: got 1; unknown key; did you mean 'json'? allowed: json, regex, choice, grammar, close_at"),
        ({}, ": give one of json, regex, choice and grammar; got none of them"),
        ({"json": True, "regex": "a"}, ": give one of json, regex, choice and grammar; got json and regex"),
    ],
)
def test_what_is_wrong_is_named(form: Any, said: str) -> None:
    (problem,) = problems(form)
    assert problem.startswith(f"generation.structured_outputs{said}")


def test_a_schema_that_is_too_deep_is_refused_at_any_depth() -> None:
    schema: dict[str, Any] = {}
    for depth in range(1, 5000):
        schema = {"items": schema}
        if depth in (100, 4999):
            assert problems({"json": schema}) == [
                "generation.structured_outputs.json: nested more than 64 levels deep; name parts of the schema in $defs "
                "and refer to them"
            ]


def test_a_form_that_cannot_be_held_to_ends_the_job_before_it_starts() -> None:
    with pytest.raises(SpecError) as caught:
        open_job(spec_of({"json": {"properties": {"a": {"not": {}}, "b": {"format": "colour"}}}}))
    assert [problem.partition(";")[0] for problem in caught.value.problems] == [
        "generation.structured_outputs.json: at /properties/a: not cannot be guaranteed",
        "generation.structured_outputs.json: at /properties/b: format 'colour' is not known",
    ]


def test_the_spec_is_read_without_the_compiler() -> None:
    code = "import sys, ray_job.spec, ray_job.cli; sys.exit('llguidance' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
