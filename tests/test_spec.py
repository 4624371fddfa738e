"""The spec: what it accepts, how it refuses, and what its fingerprint sees."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ray_job.errors import SpecError
from ray_job.spec import LENGTH_NAMES, GenerationParams, JobSpec

MINIMAL: dict[str, Any] = {"input": {"path": "in"}, "output": {"path": "out"}}


def problems(data: dict[str, Any]) -> list[str]:
    with pytest.raises(SpecError) as caught:
        JobSpec.from_dict(data)
    return caught.value.problems


def test_a_minimal_spec_has_defaults_for_the_rest() -> None:
    spec = JobSpec.from_dict(MINIMAL)
    assert spec.input.path == ("in",)
    assert spec.generation.params.is_greedy
    assert spec.model.path == "builtin:demo"


def test_every_problem_is_reported_at_once_with_value_allowed_and_nearest_name() -> None:
    found = problems(
        {
            "input": {"path": "in", "format": "parket"},
            "output": {"path": "out", "part_row": 5},
            "generation": {"max_new_tokens": 0},
            "modle": {},
        }
    )
    assert found == [
        "input.format: got 'parket'; allowed: auto, parquet, images, jsonl, json, csv, tsv, arrow, hf, webdataset, "
        "delta, iceberg, lance, documents, video; did you mean 'parquet'?",
        "output.part_row: got 5; unknown key; did you mean 'part_rows'? "
        "allowed: path, mode, format, retry_failed, part_rows, storage_options",
        "generation.max_new_tokens: got 0; allowed: greater than or equal to 1",
        "modle: got {}; unknown key; did you mean 'model'? allowed: " + ", ".join(JobSpec.model_fields),
    ]


def test_a_missing_field_and_a_wrong_type_are_named() -> None:
    found = problems({"input": {}, "output": {"path": "out"}, "generation": {"temperature": "hot"}})
    assert found[0] == "input.path: missing; it is required"
    assert found[1].startswith("generation.temperature: got 'hot'; allowed: a valid number")


@pytest.mark.parametrize(
    ("section", "values", "part"),
    [
        ("workers", {"min_actors": 3, "max_actors": 2}, "max_actors (2) is below min_actors (3)"),
        ("workers", {"gpus_per_actor": 1.5}, "allowed: 0 to 1, and with batching.engine: vllm 2, 3, …"),
        ("generation", {"stop": ["a", ""]}, "an empty string"),
        ("prompt", {"questions": ["a"], "questions_column": "q"}, "exclude each other"),
        ("prompt", {"messages_column": "m", "template": "x"}, "exclude each other"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(section: str, values: dict[str, Any], part: str) -> None:
    (problem,) = problems({**MINIMAL, section: values})
    assert problem.startswith(f"{section}")
    assert part in problem


def test_yaml_with_overrides(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("input: {path: [a, b]}\noutput: {path: out}\n")
    spec = JobSpec.from_yaml(file, ["generation.stop=[x, y]", "input.limit=3", "generation.temperature=0.5"])
    assert spec.input.path == ("a", "b")
    assert (spec.generation.stop, spec.input.limit, spec.generation.temperature) == (("x", "y"), 3, 0.5)


@pytest.mark.parametrize(
    ("text", "override", "part"),
    [
        ("input: [", None, "is not YAML"),
        ("- a\n- b\n", None, "must be a mapping"),
        ("input: {path: a}\noutput: {path: b}\n", "input.limit", "is not of the form section.key=value"),
        ("input: {path: a}\noutput: {path: b}\n", "input.path.x=1", "is not a section"),
    ],
)
def test_unusable_yaml_and_overrides_say_why(tmp_path: Path, text: str, override: str | None, part: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(SpecError, match=part):
        JobSpec.from_yaml(file, [override] if override else [])


@pytest.mark.parametrize(
    ("colour", "rgb"),
    [
        ("white", (255, 255, 255)),
        ("#102030", (16, 32, 48)),
        ("rgb(1, 2, 3)", (1, 2, 3)),
        ("hsl(0,100%,50%)", (255, 0, 0)),
    ],
)
def test_a_background_is_any_colour_of_css(colour: str, rgb: tuple[int, int, int]) -> None:
    spec = JobSpec.from_dict({**MINIMAL, "input": {**MINIMAL["input"], "background": colour}})
    assert spec.input.background_rgb == rgb


@pytest.mark.parametrize("colour", ["whitish", "", "#12", "#ffffff80", "transparent", "x" * 10_000])
def test_a_background_that_is_no_colour_is_refused(colour: str) -> None:
    with pytest.raises(SpecError, match=r"input\.background: .*allowed: a CSS colour without transparency"):
        JobSpec.from_dict({**MINIMAL, "input": {**MINIMAL["input"], "background": colour}})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"absent\.yaml: 1 problem\n  - no such file"):
        JobSpec.from_yaml(tmp_path / "absent.yaml")


def test_a_spec_is_frozen_and_pickles() -> None:
    spec = JobSpec.from_dict(MINIMAL)
    assert pickle.loads(pickle.dumps(spec)) == spec
    with pytest.raises(ValueError, match="frozen"):
        spec.model.path = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("section", "values", "changes"),
    [
        ("generation", {"max_new_tokens": 5}, True),
        ("prompt", {"system": "Be brief."}, True),
        ("model", {"num_crops": 2}, True),
        ("batching", {"max_batch_rows": 3}, False),
        ("workers", {"min_actors": 2}, False),
        ("model", {"attention": "eager"}, False),
        ("input", {**MINIMAL["input"], "pictures": "as_stored"}, True),
        ("input", {**MINIMAL["input"], "background": "black"}, True),
        ("input", {**MINIMAL["input"], "background": "#FFF"}, False),
        ("input", {**MINIMAL["input"], "truncated": "accept"}, True),
    ],
)
def test_the_fingerprint_sees_what_can_change_an_answer_and_nothing_else(
    section: str, values: dict[str, Any], changes: bool
) -> None:
    other = JobSpec.from_dict({**MINIMAL, section: values})
    assert (other.answer_fields() != JobSpec.from_dict(MINIMAL).answer_fields()) is changes


@pytest.mark.parametrize(
    ("sections", "num_rows", "rows"),
    [
        ({}, 1, 32),
        ({}, 1279, 32),
        ({}, 1280, 64),
        ({}, 1_000_000, 256),
        ({"batching": {"block_rows": 100}}, 1_000_000, 200),
        ({"batching": {"block_rows": 1000}}, 1_000_000, 1000),
        ({"batching": {"block_rows": 1}}, 10, 1),
        ({"prompt": {"questions": ["What?", "Where?"]}}, 64, 256),
        ({"output": {"path": "out", "part_rows": 7}}, 1_000_000, 7),
    ],
)
def test_parts_are_whole_blocks_and_a_small_job_has_several(sections: Any, num_rows: int, rows: int) -> None:
    assert JobSpec.from_dict({**MINIMAL, **sections}).rows_of_a_part(num_rows) == rows


def numeric_fields() -> list[tuple[str, str]]:
    """Every field of the spec that takes a number."""
    found = []
    for section, holder in JobSpec.model_fields.items():
        fields = holder.annotation.model_fields.items()  # type: ignore[union-attr]
        found += [(section, name) for name, field in fields if re.search(r"\b(int|float)\b", str(field.annotation))]
    return found


def test_there_are_numeric_fields_to_test() -> None:
    assert {("generation", "max_new_tokens"), ("generation", "stop_token_ids"), ("input", "limit")} <= {
        *numeric_fields()
    }
    assert len(numeric_fields()) > 25


@pytest.mark.parametrize(("section", "name"), numeric_fields())
@pytest.mark.parametrize("value", [True, False])
def test_a_truth_value_is_no_number(section: str, name: str, value: bool) -> None:
    values = {**MINIMAL.get(section, {}), name: value}
    assert problems({**MINIMAL, section: values}) == [f"{section}.{name}: got {value}; allowed: a number"]


def test_a_truth_value_is_no_number_in_a_list_either() -> None:
    found = problems({**MINIMAL, "generation": {"stop_token_ids": [5, True]}})
    assert found == ["generation.stop_token_ids: got [5, True]; allowed: a number"]


def test_a_number_that_yaml_reads_as_text_is_a_number(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("input: {path: a}\noutput: {path: out}\ngeneration: {temperature: 2e-1}\n")
    spec = JobSpec.from_yaml(file, ["limits.max_error_rate=1e-3"])
    assert (spec.generation.temperature, spec.limits.max_error_rate) == (0.2, 0.001)


@pytest.mark.parametrize("name", LENGTH_NAMES)
def test_the_longest_answer_has_three_names(name: str, tmp_path: Path) -> None:
    assert JobSpec.from_dict({**MINIMAL, "generation": {name: 7}}).generation.max_new_tokens == 7
    assert GenerationParams.model_validate({name: 7}) == GenerationParams(max_new_tokens=7)
    assert GenerationParams(max_new_tokens=128).overridden({name: 7}).max_new_tokens == 7
    file = tmp_path / "job.yaml"
    file.write_text("input: {path: a}\noutput: {path: out}\ngeneration: {max_completion_tokens: 9}\n")
    assert JobSpec.from_yaml(file, [f"generation.{name}=7"]).generation.max_new_tokens == 7
    jsonschema.validate({**MINIMAL, "generation": {name: 7}}, JobSpec.model_json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**MINIMAL, "generation": {name: 0}}, JobSpec.model_json_schema())


def test_two_lengths_that_differ_are_refused_by_both_names() -> None:
    both = {"max_tokens": 7, "max_new_tokens": 8}
    message = "max_new_tokens and max_tokens differ (8 and 7) and mean the same limit; keep one"
    assert problems({**MINIMAL, "generation": both}) == [f"generation: {message}"]
    with pytest.raises(ValueError, match=re.escape(message)):
        GenerationParams().overridden(both)
    assert GenerationParams.model_validate({"max_tokens": 7.0, "max_completion_tokens": 7}).max_new_tokens == 7


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"top_k": -1}, {"top_k": 0, "is_greedy": False}),
        ({"top_k": 0}, {"top_k": 0, "is_greedy": False}),
        ({"top_k": 1}, {"top_k": 1, "is_greedy": True}),
        ({"top_p": 0}, {"top_p": 0.0, "is_greedy": True}),
        ({"top_p": 1}, {"top_p": 1.0, "is_greedy": False}),
        ({"temperature": 0}, {"is_greedy": True}),
        ({"temperature": 1e-40}, {"is_greedy": True}),
        ({"temperature": 5e-324}, {"is_greedy": True}),
        ({"temperature": 0.99e-5}, {"is_greedy": True}),
        ({"temperature": 1e-5}, {"is_greedy": False}),
    ],
)
def test_parameters_mean_what_they_mean_elsewhere(values: dict[str, Any], expected: dict[str, Any]) -> None:
    params = GenerationParams.model_validate({"temperature": 1.0, **values})
    assert {name: getattr(params, name) for name in expected} == expected


@pytest.mark.parametrize(
    "values",
    [
        {"top_k": -2},
        {"top_p": 1.01},
        {"top_p": -0.1},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"repetition_penalty": 0},
        {"repetition_penalty": 1e-40},
        {"max_tokens": 0},
        {"max_tokens": 2.5},
        {"max_new_tokens": float("nan")},
        {"seed": -1},
        {"stop": [""]},
    ],
)
def test_parameters_out_of_range_are_refused_by_name(values: dict[str, Any]) -> None:
    (name,) = values
    (problem,) = problems({**MINIMAL, "generation": values})
    assert re.match(r"generation(\.max_new_tokens: |: stop|\." + name + ")", problem)


def test_overrides_tell_which_fields_are_the_rows_own() -> None:
    params = GenerationParams(max_new_tokens=5, seed=3)
    assert params.overridden({"max_tokens": 4, "seed": 3}).model_fields_set == {"max_new_tokens", "seed"}
    assert params.overridden({}).model_fields_set == set()
    assert params.overridden({}) == params


def test_row_overrides_are_validated_like_the_job() -> None:
    params = JobSpec.from_dict(MINIMAL).generation.params
    assert params.overridden({"max_new_tokens": 3}).max_new_tokens == 3
    with pytest.raises(ValueError, match="max_new_token"):
        params.overridden({"max_new_token": 3})


def test_a_problem_shows_no_credentials() -> None:
    found = problems({"input": {"path": "in"}, "output": {"pth": "s3://key:topsecret@bucket/out", "path": "out"}})
    assert found == [
        "output.pth: got 's3://bucket/out'; unknown key; did you mean 'path'? "
        "allowed: path, mode, format, retry_failed, part_rows, storage_options"
    ]
