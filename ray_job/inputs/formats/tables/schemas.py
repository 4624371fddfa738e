"""One schema for many files: types promoted, differences named, folder names as columns."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from ray_job.arrow.column_types import carried_field, plain_type
from ray_job.arrow.list_views import as_lists

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}")


def unify(schemas: Iterable[tuple[str, pa.Schema]]) -> tuple[pa.Schema, dict[str, str]]:
    """The columns of all files, and those whose types conflict.

    Whole numbers widen, null becomes anything, structs gain fields. Dictionaries and extension types of a user's own
    count as the type of their values.

    Args:
        schemas: file names with their schemas.

    Returns:
        The schema in order of first sight, without metadata; and for each column left out of it, why.
    """
    fields: dict[str, pa.Field] = {}
    clashes: dict[str, str] = {}
    seen: list[tuple[str, pa.Schema]] = []
    for name, schema in schemas:
        if any(schema.equals(other) for _, other in seen):
            continue
        for column in schema.names:
            if schema.names.count(column) > 1:
                clashes[column] = f"there are two of that name in {name}"
                continue
            field = pa.field(column, plain_type(schema.field(column).type))
            merged = _merged(fields.get(column, field), field)
            if merged is None:
                clashes[column] = f"it is {_other_type(field, fields[column], seen)} and {field.type} in {name}"
            else:
                fields[column] = merged
        seen.append((name, schema))
    return pa.schema([field for name, field in fields.items() if name not in clashes]), clashes


def _merged(first: pa.Field, second: pa.Field) -> pa.Field | None:
    """A field that holds the values of both; None where there is none."""
    for one, other in ((first, second), (carried_field(first), carried_field(second))):  # views go with no other kind
        try:
            return pa.unify_schemas([pa.schema([one]), pa.schema([other])], promote_options="permissive").field(0)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            continue
    return None


def _other_type(field: pa.Field, merged: pa.Field, seen: Sequence[tuple[str, pa.Schema]]) -> str:
    """Which type of which file a field does not go with; at worst, what all files before it have together."""
    for name, schema in seen:
        if field.name in schema.names:
            own = field.with_type(plain_type(schema.field(field.name).type))
            if _merged(own, field) is None:
                return f"{own.type} in {name}"
    return f"{merged.type} in the files before"


def text_checked(column: pa.Array) -> tuple[pa.Array, list[bool]]:
    """The column with null in place of values whose text is not UTF-8, and which these are ([] where none is).

    Parquet readers do not check text, and the first to look at it would fail.

    Args:
        column: of a `carried_type`.
    """
    try:
        column.validate(full=True)
        return column, []
    except pa.ArrowInvalid:
        is_bad = [_is_bad(column.take([row])) for row in range(len(column))]
        return _without(column, is_bad), is_bad


def cast_checked(column: pa.Array, type_: pa.DataType) -> tuple[pa.Array, list[str | None]]:
    """The column in another type, with null for values that it cannot hold, and for each of these why ([] where none).

    Raises:
        pa.ArrowException: the types do not go together at all.
    """
    if column.type == type_:
        return column, []
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    column = as_lists(column)
    try:
        return column.cast(type_), []
    except pa.ArrowInvalid:
        problems = [_cast_problem(column.slice(row, 1), type_) for row in range(len(column))]
        return _without(column, [problem is not None for problem in problems]).cast(type_), problems


def _without(column: pa.Array, is_bad: Sequence[bool]) -> pa.Array:
    """The column with null where a value is bad."""
    places = pa.array([None if bad else row for row, bad in enumerate(is_bad)], pa.int64())
    return column.take(places)


def _cast_problem(value: pa.Array, type_: pa.DataType) -> str | None:
    try:
        value.cast(type_)
    except pa.ArrowInvalid as error:
        return str(error)
    return None


def is_text(type_: pa.DataType) -> bool:
    """Whether values are strings, of any of Arrow's kinds."""
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _is_bad(value: pa.Array) -> bool:
    try:
        value.validate(full=True)
    except pa.ArrowInvalid as error:  # it may be about something else, such as a time past midnight
        return "UTF8" in str(error)
    return False


def image_features(schemas: Sequence[pa.Schema]) -> tuple[str, ...] | None:
    """The columns that Hugging Face's metadata calls pictures or lists of them, where no column's name says so."""
    names: dict[str, None] = {}
    for schema in schemas:
        if {"image", "images"} & set(schema.names):
            return None
        try:
            features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
            names.update(
                {name: None for name, feature in features.items() if name in schema.names and _is_image(feature)}
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return tuple(names) or None


def _is_image(feature: Any) -> bool:
    if isinstance(feature, list):  # as written by old releases
        return len(feature) == 1 and _is_image(feature[0])
    return isinstance(feature, dict) and (feature.get("_type") == "Image" or _is_image(feature.get("feature")))


def hive_values(name: str) -> dict[str, str | None]:
    """The `key=value` folders of a file's name, in order."""
    pairs = [part.split("=", 1) for part in name.split("/")[:-1] if "=" in part[1:]]
    return {unquote(key): None if value == _HIVE_NULL else unquote(value) for key, value in pairs}


def hive_columns(names: Iterable[str], known: Collection[str | None]) -> pa.Schema:
    """A column for each key of the folders that files lie in, except where the files have one of that name.

    It is int64 where all its values are whole numbers without leading zeros, else string.
    """
    values = [hive_values(name) for name in names]
    keys = dict.fromkeys(key for partition in values for key in partition if key not in known)
    return pa.schema([(key, _hive_type([partition.get(key) for partition in values])) for key in keys])


def repeated(value: str | None, field: pa.Field, num_rows: int) -> pa.Array:
    """A folder's value as a column of the field's type."""
    return pa.nulls(num_rows, field.type) if value is None else pa.repeat(pa.scalar(value).cast(field.type), num_rows)


def _hive_type(values: Sequence[str | None]) -> pa.DataType:
    texts = [value for value in values if value is not None]
    return pa.int64() if texts and all(_INTEGER.fullmatch(text) for text in texts) else pa.string()
