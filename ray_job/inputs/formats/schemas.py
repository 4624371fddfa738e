"""One schema for many files: types promoted, differences named, folder names as columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}")


def unify(schemas: Iterable[tuple[str, pa.Schema]]) -> tuple[pa.Schema, dict[str, str]]:
    """The columns of all files, and those whose types do not go together.

    Whole numbers widen, null becomes anything, structs gain fields. Dictionary columns count as their values' type.

    Args:
        schemas: file names with their schemas.

    Returns:
        The schema in order of first sight, without metadata; and for each column left out of it, why.
    """
    fields: dict[str, tuple[pa.Field, str]] = {}
    clashes: dict[str, str] = {}
    seen: list[pa.Schema] = []
    for name, schema in schemas:
        if any(schema.equals(other) for other in seen):
            continue
        seen.append(schema)
        for column in schema.names:
            if schema.names.count(column) > 1:
                clashes[column] = f"there are two of that name in {name}"
                continue
            field = pa.field(column, _value_type(schema.field(column).type))
            first, first_name = fields.setdefault(column, (field, name))
            try:
                merged = pa.unify_schemas([pa.schema([first]), pa.schema([field])], promote_options="permissive")
                fields[column] = (merged.field(0), first_name)
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                clashes[column] = f"it is {first.type} in {first_name} and {field.type} in {name}"
    return pa.schema([field for name, (field, _) in fields.items() if name not in clashes]), clashes


def text_checked(column: pa.Array) -> tuple[pa.Array, list[bool]]:
    """The column with null in place of values whose text is not UTF-8, and which these are ([] where none is).

    Parquet readers do not check text, and the first to look at it would fall over it.
    """
    try:
        column.validate(full=True)
        return column, []
    except pa.ArrowInvalid:
        is_bad = [_is_bad(value) for value in column]
        return pc.if_else(pa.array(is_bad), pa.scalar(None, column.type), column), is_bad


def is_text(type_: pa.DataType) -> bool:
    """Whether values are strings, of any of Arrow's kinds."""
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _is_bad(value: pa.Scalar) -> bool:
    try:
        value.as_py()
    except UnicodeDecodeError:
        return True
    return False


def _value_type(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def hive_values(name: str) -> dict[str, str | None]:
    """The `key=value` folders of a file's name, in order."""
    pairs = [part.split("=", 1) for part in name.split("/")[:-1] if "=" in part[1:]]
    return {unquote(key): None if value == _HIVE_NULL else unquote(value) for key, value in pairs}


def hive_fields(values: Sequence[Mapping[str, str | None]]) -> list[pa.Field]:
    """A column for each key: int64 where all its values are whole numbers without leading zeros, else string."""
    keys = dict.fromkeys(key for partition in values for key in partition)
    return [pa.field(key, _hive_type([partition.get(key) for partition in values])) for key in keys]


def _hive_type(values: Sequence[str | None]) -> pa.DataType:
    texts = [value for value in values if value is not None]
    return pa.int64() if texts and all(_INTEGER.fullmatch(text) for text in texts) else pa.string()
