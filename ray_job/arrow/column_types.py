"""The Arrow type of one column on its way: as it is read, as it travels between stages, as Parquet gives it back.

plain     values as they are, however a file encodes them: no dictionaries, no list views, which Ray cannot send, and
          no extension types of a user's own, which no other process knows
carried   what every kernel between reading and writing can work on: no views, no extension types
wide      carried, of columns that are not kept: texts and bytes of any size, so that no block of rows is too large
stored    what the output holds, and so what its schema says from the start
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

_Change = Callable[[pa.DataType], pa.DataType]


def plain_type(type_: pa.DataType) -> pa.DataType:
    """Without dictionaries, run-length encoding, list views and extension types that Arrow itself does not have."""
    if pa.types.is_dictionary(type_) or pa.types.is_run_end_encoded(type_):
        return plain_type(type_.value_type)
    if isinstance(type_, pa.ExtensionType):
        return plain_type(type_.storage_type)
    if pa.types.is_list_view(type_):
        return pa.list_(_changed(type_.value_field, plain_type))
    if pa.types.is_large_list_view(type_):
        return pa.large_list(_changed(type_.value_field, plain_type))
    return _with_inner(type_, plain_type)


def carried_type(type_: pa.DataType) -> pa.DataType:
    """Without views and extension types: Arrow cannot take, filter or replace values of either everywhere."""
    if isinstance(type_, pa.BaseExtensionType):
        return carried_type(type_.storage_type)
    if pa.types.is_string_view(type_):
        return pa.large_string()
    if pa.types.is_binary_view(type_):
        return pa.large_binary()
    return _with_inner(type_, carried_type)


def wide_type(type_: pa.DataType) -> pa.DataType:
    """With 64-bit offsets for texts and bytes, however deep they are nested, except in maps.

    Arrow's plain `binary` and `string` hold at most 2 GiB in one array, which 32 pictures can exceed.
    """
    if pa.types.is_binary(type_):
        return pa.large_binary()
    if pa.types.is_string(type_):
        return pa.large_string()
    return type_ if pa.types.is_map(type_) else _with_inner(type_, wide_type)


def carried_field(field: pa.Field) -> pa.Field:
    """The field with its `carried_type`."""
    return field.with_type(carried_type(field.type))


def stored_field(field: pa.Field) -> pa.Field:
    """The field as Parquet gives it back, which changes some types: seconds become milliseconds, for one.

    Raises:
        pa.ArrowException, OSError: Parquet cannot hold the type; `reason_not_stored` asks first.
    """
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, pa.schema([field])):
        pass
    stored = pq.read_schema(pa.BufferReader(sink.getvalue())).field(0)
    return field.with_type(stored.type)


def reason_not_stored(type_: pa.DataType) -> str | None:
    """Why Parquet cannot hold values of a type; None where it can."""
    try:
        stored_field(pa.field("column", type_))
    except (pa.ArrowException, OSError) as error:
        return str(error)
    return None


def with_types(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table's columns of a schema's names, cast where the type is another.

    Raises:
        pa.ArrowException: a value does not fit.
    """
    columns = [table.column(field.name) for field in schema]
    pairs = zip(columns, schema, strict=True)
    # A cast to the same type is no cast: Arrow has none for some types.
    return pa.table([c if c.type == field.type else c.cast(field.type) for c, field in pairs], schema=schema)


def empty_table(schema: pa.Schema) -> pa.Table:
    """No rows, of whatever types: Arrow's own has no extension types within others."""
    return with_types(pa.schema([carried_field(field) for field in schema]).empty_table(), schema)


def taken(table: pa.Table, places: pa.Array) -> pa.Table:
    """The rows at these places, of whatever types."""
    return with_types(_carried(table).take(places), table.schema)


def filtered(table: pa.Table, mask: pa.Array) -> pa.Table:
    """The rows where the mask is true, of whatever types."""
    return with_types(_carried(table).filter(mask), table.schema)


def _carried(table: pa.Table) -> pa.Table:
    return with_types(table, pa.schema([carried_field(field) for field in table.schema]))


def _with_inner(type_: pa.DataType, change: _Change) -> pa.DataType:
    """A nested type with its inner ones changed."""
    types = pa.types
    if types.is_struct(type_):
        return pa.struct([_changed(field, change) for field in type_])
    if types.is_map(type_):
        return pa.map_(_changed(type_.key_field, change), _changed(type_.item_field, change), type_.keys_sorted)
    if types.is_fixed_size_list(type_):
        return pa.list_(_changed(type_.value_field, change), type_.list_size)
    if types.is_list(type_):
        return pa.list_(_changed(type_.value_field, change))
    if types.is_large_list(type_):
        return pa.large_list(_changed(type_.value_field, change))
    return type_


def _changed(field: pa.Field, change: _Change) -> pa.Field:
    return field.with_type(change(field.type))
