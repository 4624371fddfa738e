"""List views as lists. Arrow's own cast reads the end of the last list from beyond its buffer, and empties it."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


def as_lists(column: pa.Array) -> pa.Array:
    """The same values with lists in place of list views, within structs and lists too."""
    types, type_ = pa.types, column.type
    if not _has_views(type_):
        return column
    if types.is_struct(type_):
        inner = [as_lists(column.field(index)) for index in range(type_.num_fields)]
        fields = [field.with_type(each.type) for field, each in zip(type_, inner, strict=True)]
        return pa.StructArray.from_arrays(inner, fields=fields, mask=column.is_null())
    values = as_lists(column.flatten())  # of the lists that are not null
    if types.is_fixed_size_list(type_):
        lengths = pa.array([0 if is_null else type_.list_size for is_null in column.is_null().to_pylist()], pa.int32())
    else:
        lengths = pc.fill_null(pc.list_value_length(column), 0)
    ends = pc.cumulative_sum(lengths)
    starts = pa.concat_arrays([pa.array([0], ends.type), ends])
    kind = pa.LargeListArray if ends.type == pa.int64() else pa.ListArray
    return kind.from_arrays(starts, values, mask=column.is_null())


def _has_views(type_: pa.DataType) -> bool:
    types = pa.types
    if types.is_list_view(type_) or types.is_large_list_view(type_):
        return True
    is_known = types.is_struct(type_) or types.is_list(type_) or types.is_large_list(type_)
    if not (is_known or types.is_fixed_size_list(type_)):
        return False
    return any(_has_views(type_.field(index).type) for index in range(type_.num_fields))
