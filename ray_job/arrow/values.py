"""Arrow's values as Python's, whatever they are. Python knows no year beyond 9999, no time zone that this machine does
not have, no text that is not UTF-8; Arrow's own conversion raises for all of a column then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, overload

import pyarrow as pa

_Column: TypeAlias = pa.Array | pa.ChunkedArray


def python_values(column: _Column) -> list[Any]:
    """Values as `to_pylist` gives them; one that Python cannot hold is a text, within its list or struct too."""
    if column.type == pa.time64("ns"):  # Python would drop the nanoseconds
        return _texts(column)
    try:
        values = column.to_pylist()
    except Exception:  # Arrow lets through whatever Python's own types raise
        return [_python_value(value) for value in column]
    if pa.types.is_temporal(column.type):  # pandas takes the least number of nanoseconds for "not a time"
        return [
            values[row] if values[row] == values[row] else _texts(column[row : row + 1])[0]
            for row in range(len(values))
        ]
    return values  # type: ignore[no-any-return]


def prompt_values(column: _Column) -> list[Any]:
    """The same, but dates and times are always texts, so that a prompt does not depend on what Python can hold."""
    return _texts(column) if pa.types.is_temporal(column.type) else python_values(column)


def python_rows(table: pa.Table) -> list[dict[str, Any]]:
    """A table's rows, their values as `python_values` gives them."""
    return _rows(table.column_names, [python_values(column) for column in table.columns], table.num_rows)


def prompt_rows(table: pa.Table) -> list[dict[str, Any]]:
    """A table's rows, their values as `prompt_values` gives them."""
    return _rows(table.column_names, [prompt_values(column) for column in table.columns], table.num_rows)


class PromptRows(Sequence[dict[str, Any]]):
    """A table's rows as `prompt_rows` gives them, each made when it is asked for: for tables with large values."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[dict[str, Any]]: ...
    def __getitem__(self, place: int | slice) -> dict[str, Any] | Sequence[dict[str, Any]]:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            assert step == 1, "neighbouring rows"
            return PromptRows(self._table.slice(start, max(0, stop - start)))
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return prompt_rows(self._table.slice(place % len(self), 1))[0]


def _rows(names: list[str], columns: list[list[Any]], num_rows: int) -> list[dict[str, Any]]:
    return [{name: values[row] for name, values in zip(names, columns, strict=True)} for row in range(num_rows)]


def _python_value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except Exception:
        return _inner(value)


def _inner(value: pa.Scalar) -> Any:
    """A value that Python cannot hold as it is."""
    types, type_ = pa.types, value.type
    if isinstance(type_, pa.BaseExtensionType) or types.is_dictionary(type_):
        return _python_value(value.value)
    if types.is_struct(type_):
        return {field.name: _python_value(value[index]) for index, field in enumerate(type_)}
    if types.is_map(type_):
        pairs = zip(value.values.field(0), value.values.field(1), strict=True)
        return [(_python_value(key), _python_value(item)) for key, item in pairs]
    if types.is_nested(type_):
        return [_python_value(each) for each in value.values]
    if types.is_temporal(type_):
        return _texts(pa.array([value], type_))[0]
    if types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_):
        return value.as_buffer().to_pybytes().decode(errors="replace")
    return f"<a {type_} that cannot be shown>"


def _texts(column: _Column) -> list[str | None]:
    """Dates and times as Arrow writes them; in a time zone that it does not know, in UTC."""
    try:
        return column.cast(pa.string()).to_pylist()  # type: ignore[no-any-return]
    except pa.ArrowException:
        pass
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp(column.type.unit, "UTC")).cast(pa.string()).to_pylist()  # type: ignore[no-any-return]
    return [None if value is None else str(value) for value in column.to_pylist()]
