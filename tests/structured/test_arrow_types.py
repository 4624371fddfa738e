"""JSON Schema → Arrow type."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_job.rows import output_schema
from ray_job.spec import StructuredOutputs
from ray_job.structured.arrow_types import JSON_TEXT, arrow_type

TEXT, INT, FLOAT, BOOL, NULL = pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.null()
TYPES: dict[str, tuple[Any, pa.DataType]] = {
    "string": ({"type": "string"}, TEXT),
    "string_of_a_pattern": ({"type": "string", "pattern": "^a+$", "maxLength": 4}, TEXT),
    "date": ({"type": "string", "format": "date"}, TEXT),
    "date_time": ({"type": "string", "format": "date-time"}, TEXT),
    "integer": ({"type": "integer", "minimum": 0, "maximum": 9}, INT),
    "integer_beyond_64_bits": ({"type": "integer", "maximum": 2**63}, JSON_TEXT),
    "integer_below_64_bits": ({"type": "integer", "exclusiveMinimum": -(2**63) - 1}, JSON_TEXT),
    "number": ({"type": "number"}, FLOAT),
    "boolean": ({"type": "boolean"}, BOOL),
    "null": ({"type": "null"}, NULL),
    "enum": ({"enum": ["red", "blue"]}, TEXT),
    "enum_with_its_type": ({"type": "string", "enum": ["red"]}, TEXT),
    "enum_with_null": ({"enum": ["red", None]}, TEXT),
    "enum_of_integers": ({"enum": [1, 2]}, INT),
    "enum_of_large_integers": ({"enum": [1, 2**63]}, JSON_TEXT),
    "enum_of_numbers": ({"enum": [1, 2.5]}, FLOAT),
    "enum_of_truth_and_number": ({"enum": [True, 1]}, JSON_TEXT),
    "enum_of_several_types": ({"enum": ["a", 1]}, JSON_TEXT),
    "enum_of_objects": ({"enum": [{"a": 1}]}, JSON_TEXT),
    "const": ({"const": "red"}, TEXT),
    "const_truth": ({"const": True}, BOOL),
    "const_null": ({"const": None}, NULL),
    "list_of_types": ({"type": ["string", "null"]}, TEXT),
    "list_of_numbers_types": ({"type": ["integer", "number"]}, FLOAT),
    "list_of_other_types": ({"type": ["string", "integer"]}, JSON_TEXT),
    "any_of_null": ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, INT),
    "one_of_text_and_enum": ({"oneOf": [{"type": "string"}, {"enum": ["a"]}]}, TEXT),
    "union": ({"anyOf": [{"type": "string"}, {"type": "number"}]}, JSON_TEXT),
    "all_of_one": ({"allOf": [{"type": "string"}]}, TEXT),
    "all_of_two": ({"allOf": [{"type": "string"}, {"maxLength": 3}]}, JSON_TEXT),
    "array": ({"type": "array", "items": {"type": "integer"}}, pa.list_(pa.field("element", INT, nullable=False))),
    "array_of_some": ({"type": "array", "items": {"type": ["integer", "null"]}}, pa.list_(pa.field("element", INT))),
    "array_of_anything": ({"type": "array"}, pa.list_(pa.field("element", JSON_TEXT))),
    "tuple": ({"type": "array", "prefixItems": [{"type": "integer"}]}, JSON_TEXT),
    "old_tuple": ({"type": "array", "items": [{"type": "integer"}]}, JSON_TEXT),
    "object": (
        {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}, "required": ["b"]},
        pa.struct([pa.field("b", INT, nullable=False), pa.field("a", TEXT)]),
    ),
    "required_and_nullable": (
        {"type": "object", "properties": {"a": {"type": ["string", "null"]}}, "required": ["a"]},
        pa.struct([pa.field("a", TEXT)]),
    ),
    "required_and_not_described": (
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]},
        pa.struct([pa.field("a", TEXT), pa.field("b", JSON_TEXT)]),
    ),
    "no_other_keys": (
        {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": False},
        pa.struct([pa.field("a", NULL)]),
    ),
    "object_of_anything": ({"type": "object"}, JSON_TEXT),
    "map": ({"type": "object", "additionalProperties": {"type": "integer"}}, JSON_TEXT),
    "keys_and_others": (
        {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "integer"}},
        JSON_TEXT,
    ),
    "patterns_of_keys": ({"type": "object", "properties": {"a": {}}, "patternProperties": {"^b": {}}}, JSON_TEXT),
    "object_and_more": ({"type": "object", "properties": {"a": {}}, "anyOf": [{"required": ["a"]}]}, JSON_TEXT),
    "keys_alike_but_for_case": ({"type": "object", "properties": {"a": {}, "A": {}}}, JSON_TEXT),
    "empty_key": ({"type": "object", "properties": {"": {}}}, JSON_TEXT),
    "key_with_a_null_character": ({"type": "object", "properties": {"a\0b": {}}}, JSON_TEXT),
    "key_with_half_a_pair": ({"type": "object", "properties": {"\ud800": {}}}, JSON_TEXT),
    "properties_without_a_type": ({"properties": {"a": {"type": "string"}}}, JSON_TEXT),
    "any_object": (True, JSON_TEXT),
    "nothing_said": ({}, JSON_TEXT),
    "ref": ({"$ref": "#/$defs/a~1b c", "$defs": {"a/b c": {"type": "integer"}}}, INT),
    "ref_into_a_list": ({"$ref": "#/x/1", "x": [{}, {"type": "integer"}]}, INT),
    "ref_to_nowhere": ({"$ref": "#/$defs/a"}, JSON_TEXT),
    "ref_elsewhere": ({"$ref": "https://example.com/a.json"}, JSON_TEXT),
    "recursive": (
        {
            "type": "object",
            "properties": {"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#"}}},
            "required": ["name", "children"],
        },
        pa.struct(
            [
                pa.field("name", TEXT, nullable=False),
                pa.field("children", pa.list_(pa.field("element", JSON_TEXT)), nullable=False),
            ]
        ),
    ),
}


@pytest.mark.parametrize(("schema", "expected"), TYPES.values(), ids=TYPES)
def test_a_schema_has_its_type(schema: Any, expected: pa.DataType) -> None:
    assert arrow_type(schema) == expected
    assert str(arrow_type(schema)) == str(expected), "field names and all"


def test_a_reference_to_itself_alone_ends() -> None:
    assert arrow_type({"$ref": "#"}) == JSON_TEXT
    assert arrow_type({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}) == (
        JSON_TEXT
    )


def test_a_long_way_of_references_is_text() -> None:
    defs: dict[str, Any] = {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(3000)}
    assert arrow_type({"$ref": "#/$defs/a0", "$defs": {**defs, "a3000": {"type": "string"}}}) == JSON_TEXT


def test_references_that_unfold_without_bound_are_text() -> None:
    level = {f"l{n}": _object({"x": f"l{n + 1}", "y": f"l{n + 1}"}) for n in range(30)}
    assert arrow_type({"$ref": "#/$defs/l0", "$defs": {**level, "l30": {"type": "string"}}}) == JSON_TEXT


def _object(refs: dict[str, str]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"$ref": f"#/$defs/{ref}"} for name, ref in refs.items()}}


def test_what_lies_too_deep_for_arrows_messages_is_text() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(100):
        schema = {"type": "array", "items": schema}
    type_ = arrow_type(schema)
    field = pa.field("parsed", type_)
    assert pa.ipc.read_schema(pa.schema([field]).serialize()).field(0).type == type_


def test_a_deep_schema_is_in_the_output_as_parquet_gives_it_back() -> None:
    levels = {f"l{n}": _object({"a": f"l{n + 1}"}) for n in range(100)}
    schema = {"$ref": "#/$defs/l0", "$defs": {**levels, "l100": {"type": "string"}}}
    columns = output_schema(pa.string(), (), False, StructuredOutputs.model_validate({"json": schema}))
    assert columns.field("parsed").type == arrow_type(schema)
    assert "extension<arrow.json>" in str(arrow_type(schema))


NAMES = st.sampled_from([*"abA", "type", "items", "properties", "$ref", "anyOf", "allOf", "enum", "const", "required"])
WORDS = st.sampled_from(["string", "integer", "object", "array", "null", "number", "#", "#/a", "#/items", "a"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


@given(ANYTHING)
def test_no_schema_fails(schema: Any) -> None:
    assert isinstance(arrow_type(schema), pa.DataType)
