"""JSON answers as values of their schema's type, through Parquet and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_job.arrow.column_types import carried_type, stored_field, with_types
from ray_job.structured.arrow_types import JSON_TEXT, arrow_type
from ray_job.structured.values import parsed_value

CARD = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blue"]},
        "count": {"type": "integer"},
        "size": {"type": ["number", "null"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "note": {},
    },
    "required": ["colour", "count"],
}
WHOLE = {"colour": "red", "count": 3, "size": 1.5, "tags": ["ü"], "note": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (json.dumps(WHOLE), WHOLE),
        (' {"colour": "red", "count": 3}\n', {**WHOLE, "size": None, "tags": None}),
        ('{"colour":"red","count":3.0,"size":2}', {**WHOLE, "size": 2.0, "tags": None}),
        ('{"colour":"green","count":3}', {**WHOLE, "colour": "green", "size": None, "tags": None}),
        ('{"colour":"red","count":3,"other":1}', {**WHOLE, "size": None, "tags": None}),
        (
            '{"colour":"red","count":3,"note":{"b":[1.50,"ü\\u0000"]}}',
            {**WHOLE, "size": None, "tags": None, "note": '{"b":[1.5,"ü\\u0000"]}'},
        ),
    ],
)
def test_an_answer_that_fits(text: str, expected: dict[str, Any]) -> None:
    assert parsed_value(text, arrow_type(CARD)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "red",
        "[]",
        "null",
        '{"colour":"red","count":3',
        '{"colour":"red"}',
        '{"colour":null,"count":3}',
        '{"colour":"red","count":"3"}',
        '{"colour":"red","count":true}',
        '{"colour":"red","count":3.5}',
        '{"colour":"red","count":9223372036854775808}',
        '{"colour":"red","count":1e16}',
        '{"colour":"red","count":' + "9" * 5000 + "}",
        '{"colour":"red","count":3,"size":NaN}',
        '{"colour":"red","count":3,"size":1e999}',
        '{"colour":"red","count":3,"size":1' + "0" * 400 + "}",
        '{"colour":"red","count":3,"note":-1e999}',
        '{"colour":"red","count":3,"note":Infinity}',
        '{"colour":"\\ud800","count":3}',
        '{"colour":"red","count":3,"note":{"\\ud800":1}}',
        '{"colour":"red","count":3,"tags":[null]}',
        '{"colour":"red","count":3,"tags":"x"}',
        '{"colour":"red","count":3,"note":' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
    ids=lambda text: text[:60],
)
def test_an_answer_that_does_not_fit_has_no_value(text: str) -> None:
    assert parsed_value(text, arrow_type(CARD)) is None


def test_json_of_any_form_is_kept_as_it_was_written() -> None:
    assert parsed_value(' {"a": 1.0, "b":9007199254740993000} ', JSON_TEXT) == '{"a": 1.0, "b":9007199254740993000}'
    assert parsed_value('"\\ud83d\\ude00"', JSON_TEXT) == '"\\ud83d\\ude00"', "a whole pair"
    assert parsed_value('"\\ud83d"', JSON_TEXT) is None, "duckdb would not read the file"
    assert parsed_value("null", JSON_TEXT) is None


@dataclass(frozen=True)
class Kind:
    """A schema, values that conform to it, and what Arrow gives back of one."""

    schema: dict[str, Any]
    values: st.SearchStrategy[Any]
    stored: Callable[[Any], Any] = lambda value: value


def as_text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def nullable(kind: Kind) -> Kind:
    return Kind(
        {"anyOf": [kind.schema, {"type": "null"}]},
        st.none() | kind.values,
        lambda value: None if value is None else kind.stored(value),
    )


def array(kind: Kind) -> Kind:
    return Kind(
        {"type": "array", "items": kind.schema},
        st.lists(kind.values, max_size=3),
        lambda value: [kind.stored(item) for item in value],
    )


def obj(kinds: dict[str, tuple[Kind, bool]]) -> Kind:
    required = [name for name, (_, is_required) in kinds.items() if is_required]
    of = {name: kind.values for name, (kind, _) in kinds.items()}
    given = {name: values for name, values in of.items() if name in required}
    optional = {name: values for name, values in of.items() if name not in required}

    def stored(value: dict[str, Any]) -> dict[str, Any]:
        return {name: kind.stored(value[name]) if name in value else None for name, (kind, _) in kinds.items()}

    properties = {name: kind.schema for name, (kind, _) in kinds.items()}
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return Kind(schema, st.fixed_dictionaries(given, optional=optional), stored)


TEXTS, LARGE = st.text(max_size=5), st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.sampled_from(
    [
        Kind({"type": "string"}, TEXTS),
        Kind({"enum": ["red", "grün", ""]}, st.sampled_from(["red", "grün", ""])),
        Kind({"const": 7}, st.just(7)),
        Kind({"type": "integer"}, LARGE),
        Kind({"type": "number"}, FLOATS | st.integers(-(2**70), 2**70), float),
        Kind({"type": "boolean"}, st.booleans()),
        Kind({"type": "null"}, st.none()),
        Kind({"type": ["string", "integer"]}, TEXTS | st.integers(), as_text),
        Kind({"type": "object"}, st.dictionaries(TEXTS, FLOATS | TEXTS | st.none(), max_size=3), as_text),
        Kind({"type": "array", "prefixItems": [{"type": "string"}]}, st.tuples(TEXTS).map(list), as_text),
        Kind({}, st.none() | LARGE | FLOATS | TEXTS, as_text),
    ]
)
KEYS = st.sampled_from(["colour", "größe", "a b", "x.y", "type", "数"])
KINDS = st.recursive(
    LEAVES,
    lambda inner: (
        inner.map(nullable)
        | inner.map(array)
        | st.dictionaries(KEYS, st.tuples(inner, st.booleans()), min_size=1, max_size=4).map(obj)
    ),
    max_leaves=6,
)


@given(KINDS, st.data())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_every_conforming_answer_comes_back_from_parquet(kind: Kind, data: st.DataObject) -> None:
    values = data.draw(st.lists(kind.values, max_size=4))
    jsonschema.validate(values, {"type": "array", "items": kind.schema})
    field = stored_field(pa.field("parsed", arrow_type(kind.schema)))
    parsed = [parsed_value(json.dumps(value, ensure_ascii=False), field.type) for value in values]
    back = through_parquet([*parsed, None], field)
    assert back.type == field.type
    # At the top JSON text is the answer's own; within it is written anew.
    expected = [as_written(value) if field.type == JSON_TEXT else kind.stored(value) for value in values]
    assert back.to_pylist() == [*expected, None]


def as_written(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def through_parquet(values: list[Any], field: pa.Field) -> pa.ChunkedArray:
    """As the stages do it: as the carried type, in two chunks, then as the type that is stored."""
    type_ = carried_type(field.type)
    column = pa.chunked_array([pa.array(values[:1], type_), pa.array(values[1:], type_)])
    table = with_types(pa.table({"parsed": column}), pa.schema([field]))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return pq.read_table(pa.BufferReader(sink.getvalue())).column("parsed")
