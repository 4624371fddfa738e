"""The types that columns have between stages, so that no block of rows is too large for them.

Arrow's plain `binary` and `string` hold at most 2 GiB in one array, which 32 pictures can exceed.
"""

from __future__ import annotations

import pyarrow as pa


def widened(type_: pa.DataType) -> pa.DataType:
    """The same type with 64-bit offsets for its texts and bytes, however deep they are nested."""
    if pa.types.is_binary(type_):
        return pa.large_binary()
    if pa.types.is_string(type_):
        return pa.large_string()
    if pa.types.is_struct(type_):
        return pa.struct([_widened(field) for field in type_])
    if pa.types.is_large_list(type_):
        return pa.large_list(_widened(type_.value_field))
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(_widened(type_.value_field), type_.list_size)
    if pa.types.is_list(type_):
        return pa.list_(_widened(type_.value_field))
    return type_


def _widened(field: pa.Field) -> pa.Field:
    return field.with_type(widened(field.type))
