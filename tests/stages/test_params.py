"""A row's own generation parameters: forms in structs, in JSON text and in texts within; what is wrong with them."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from ray_job.errors import ErrorCode, RowError, Stage
from ray_job.spec import GenerationParams, StructuredOutputs
from ray_job.stages.params import RowParams
from ray_job.structured.grammar import _kept

JOB = GenerationParams(max_new_tokens=7)
SCHEMA = {"type": "object", "properties": {"n": {"type": ["integer", "null"], "enum": [1, None]}}, "required": ["n"]}


def form_of(value: Any) -> StructuredOutputs | None:
    return RowParams(JOB, "own").of({"own": value}).structured_outputs


@pytest.mark.parametrize(
    "value",
    [
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
        json.dumps({"structured_outputs": {"json": SCHEMA}}),
        json.dumps({"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None}}),
    ],
)
def test_a_rows_form_may_be_a_struct_or_json(value: Any) -> None:
    assert form_of(value) == StructuredOutputs.model_validate({"json": SCHEMA})


def test_nulls_of_a_structs_other_rows_are_no_part_of_a_schema() -> None:
    """Arrow gives each row the keys of all."""
    forms = [
        {"json": {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}}},
        {"json": {"type": "array", "items": {"type": "integer"}}},
        {"choice": ["x", "y"]},
    ]
    column = pa.array([{"structured_outputs": form} for form in forms]).to_pylist()
    assert column[2]["structured_outputs"]["json"] is None
    found = [form_of(value) for value in column]
    assert found == [StructuredOutputs.model_validate(form) for form in forms]


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (
            {"json": {"properties": {"a": {"not": {}}, "b": {"type": "text"}}}},
            "structured_outputs.json: at /properties/a: not cannot be guaranteed; say what is allowed instead; "
            "structured_outputs.json: at /properties/b: type 'text' does not exist; ",
        ),
        ({"json": "schema.json"}, "structured_outputs.json: not JSON: Expecting value"),
        ({"json": "3"}, "structured_outputs.json: got 3; allowed: a JSON Schema (an object), or true for any object"),
        ({"json": "{" * 200}, "structured_outputs.json: not JSON: nested more than 100 levels deep"),
        ({"regex": "["}, "structured_outputs.regex: at 1(8): invalid regex"),
        ({"jsn": True}, "structured_outputs.jsn: got True; unknown key; did you mean 'json'? allowed: json, regex, "),
        (
            {"json": True, "choice": ["a"]},
            "structured_outputs: give one of json, regex, choice and grammar; got json and",
        ),
        ("json", "structured_outputs: got 'json'; allowed: "),
    ],
)
def test_what_is_wrong_with_a_rows_form_names_column_and_place(form: Any, said: str) -> None:
    for value in ({"structured_outputs": form}, json.dumps({"structured_outputs": form})):
        with pytest.raises(RowError) as caught:
            form_of(value)
        assert (caught.value.code, caught.value.stage) == (ErrorCode.PARAMS_INVALID, Stage.PREPARE)
        assert caught.value.message.startswith(f"column 'own': {said}")


def test_rows_with_the_same_form_share_what_is_read_and_compiled() -> None:
    _kept.cache_clear()
    params, text = RowParams(JOB, "own"), json.dumps({"structured_outputs": {"json": SCHEMA}, "top_k": 3})
    read = [params.of({"own": text}) for _ in range(10_000)]
    assert all(each is read[0] for each in read)
    assert (_kept.cache_info().misses, _kept.cache_info().hits) == (1, 0)
    for seed in range(100):
        params.of({"own": json.dumps({"structured_outputs": {"json": SCHEMA}, "seed": seed})})
    assert (_kept.cache_info().misses, _kept.cache_info().hits) == (1, 100)
    assert len(params._kept) == 64
    assert params.of({"own": None}) is JOB
    assert params.of({"own": " "}) is JOB
