"""JSON Schema → the Arrow type of the answers that conform to it: the column `parsed`.

string, whatever its `format`         string
integer                               int64
number                                double
boolean, null                         bool, null
array                                 list of its items' type
object with `properties`              struct, in the schema's order
$ref, allOf of one                    what they stand for
anyOf, oneOf, lists of types          the type that all have; double for integers and numbers
enum, const                           the type that all values have, in the same way
anything else                         JSON text, in its place (Arrow's extension type `arrow.json`)

A field is nullable if its key is not required or null is allowed. Keywords that only narrow what is allowed change no
type. Types are what Parquet, pyarrow, pandas, polars, duckdb and datasets all read: no maps, which datasets does not
know; no times, since a text of a time's form may name none; no dictionaries for enums, since Arrow looks up values of
one in structs that are null too, and fails where it has none. Parquet stores repeated texts as a dictionary anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from ray_job.structured.schema import target

JSON_TEXT = pa.json_()
_MAX_DEPTH = 32  # of parts within parts, references counted: Arrow's own messages hold 64 levels
_MAX_FIELDS = 1000  # references may unfold to any number
_PLAIN = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "null": pa.null(),
}
_NUMBERS = {pa.int64(), pa.float64()}
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_APPLICATORS = ("$ref", "allOf", "anyOf", "oneOf")
_ANY = pa.field("", JSON_TEXT)


def arrow_type(schema: Any) -> pa.DataType:
    """The type of the JSON values that a schema allows; JSON text where they have no one type. Never fails."""
    try:
        return _Places(schema).of(schema, ("#",)).type
    except _TooManyFields:
        return JSON_TEXT


class _TooManyFields(Exception):  # noqa: N818 - it names what happened
    pass


class _Places:
    """Makes of each part of a schema a nameless field: the type of its values, and whether null is one."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._num_fields = 0

    def of(self, schema: Any, refs: tuple[str, ...] = (), depth: int = 0) -> pa.Field:
        """The place of a part; it lies within `depth` others, `refs` are the references among them."""
        self._num_fields += 1
        if self._num_fields > _MAX_FIELDS:
            raise _TooManyFields
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
            return _ANY
        if "const" in schema:
            return _of_values([schema["const"]])
        if "enum" in schema:
            return _of_values(_items(schema["enum"]))
        if "type" in schema:
            names = schema["type"]
            return _joined(self._typed(name, schema, refs, depth) for name in _items(names) or [names])
        return self._applied(schema, refs, depth)

    def _applied(self, schema: Mapping[str, Any], refs: tuple[str, ...], depth: int) -> pa.Field:
        """Where other schemas say what is allowed."""
        given = [name for name in _APPLICATORS if name in schema]
        if len(given) != 1:
            return _ANY
        value = schema[given[0]]
        if given == ["$ref"]:
            is_again = value in refs  # within itself, without end
            return _ANY if is_again else self.of(self._named(value), (*refs, value), depth + 1)
        parts = _items(value)
        if given == ["allOf"] and len(parts) != 1:
            return _ANY
        return _joined(self.of(part, refs, depth + 1) for part in parts) if parts else _ANY

    def _named(self, reference: Any) -> Any:
        """What a reference names within the schema, if anything."""
        is_pointer = isinstance(reference, str) and (reference == "#" or reference.startswith("#/"))
        return target(reference, self._root) if is_pointer else None

    def _typed(self, name: Any, schema: Mapping[str, Any], refs: tuple[str, ...], depth: int) -> pa.Field:
        """Where a schema names a type."""
        if name == "integer" and not all(map(_is_64_bit, (schema.get(bound) for bound in _BOUNDS))):
            return _ANY
        if isinstance(name, str) and name in _PLAIN:
            return pa.field("", _PLAIN[name], nullable=name == "null")
        if name == "array" and "prefixItems" not in schema and not isinstance(schema.get("items"), list):
            item = self.of(schema.get("items", True), refs, depth + 1)
            return pa.field("", pa.list_(item.with_name("element")), nullable=False)
        if name == "object" and not any(key in schema for key in ("patternProperties", *_APPLICATORS)):
            return self._struct(schema, refs, depth)
        return _ANY

    def _struct(self, schema: Mapping[str, Any], refs: tuple[str, ...], depth: int) -> pa.Field:
        properties, required = schema.get("properties"), _items(schema.get("required"))
        has_own_others = isinstance(schema.get("additionalProperties"), Mapping)
        if not isinstance(properties, Mapping) or not properties or has_own_others:
            return _ANY
        parts = {**properties, **{name: True for name in required if name not in properties}}
        if not _are_columns(parts):
            return _ANY
        places = {name: self.of(part, refs, depth + 1) for name, part in parts.items()}
        fields = [place.with_name(n).with_nullable(place.nullable or n not in required) for n, place in places.items()]
        return pa.field("", pa.struct(fields), nullable=False)


def _joined(places: Iterable[pa.Field]) -> pa.Field:
    """The place of values that belong in any of these."""
    places = list(places)
    types = {place.type for place in places if place.type != pa.null()}
    nullable = any(place.nullable for place in places)
    if not types:
        return pa.field("", pa.null())
    if len(types) == 1:
        return pa.field("", types.pop(), nullable=nullable)
    return pa.field("", pa.float64(), nullable=nullable) if types <= _NUMBERS else _ANY


def _of_values(values: list[Any]) -> pa.Field:
    """The place of one of these values."""
    return _joined(map(_of_value, values)) if values else _ANY


def _of_value(value: Any) -> pa.Field:
    if value is None:
        return pa.field("", pa.null())
    if isinstance(value, bool):
        return pa.field("", pa.bool_(), nullable=False)
    if isinstance(value, int) and _is_64_bit(value):
        return pa.field("", pa.int64(), nullable=False)
    if isinstance(value, float):
        return pa.field("", pa.float64(), nullable=False)
    return pa.field("", pa.string(), nullable=False) if isinstance(value, str) else _ANY


def _is_64_bit(value: Any) -> bool:
    return not isinstance(value, int | float) or -(2**63) <= value < 2**63


def _are_columns(names: Iterable[Any]) -> bool:
    """Whether every reader can tell these keys apart: duckdb does not by case, nor pandas behind a null character."""
    names = list(names)
    folded = {name.casefold() for name in names if isinstance(name, str)}
    return len(folded) == len(names) and all(name and "\0" not in name and _is_text(name) for name in names)


def _is_text(name: str) -> bool:
    return name.encode(errors="replace").decode() == name


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
