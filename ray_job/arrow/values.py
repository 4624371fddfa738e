"""Arrow's values as Python's, whatever they are. Python knows no year beyond 9999, no time zone that this machine does
not have, no text that is not UTF-8; Arrow's own conversion raises for all of a column then."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, overload

import pyarrow as pa

_Column: TypeAlias = pa.Array | pa.ChunkedArray
_FRACTION_ZEROS = re.compile(r"(?<=:\d\d)(?:\.0+|(\.\d*[1-9])0+)(?!\d)")
_OFFSET = re.compile(r"(:\d\d(?:\.\d+)?[+-]\d\d)(\d\d)$")
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


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
    """The same, for people to read, at any depth: dates and times are texts, narrow floats have their own digits."""
    if pa.types.is_temporal(column.type):
        return _shown_times(column)
    if _is_narrow(column.type) or _has_inner(
        column.type, lambda type_: pa.types.is_temporal(type_) or _is_narrow(type_)
    ):
        return [_prompt_value(value) for value in column]
    return python_values(column)


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
        return _inner(value, _python_value)


def _prompt_value(value: pa.Scalar) -> Any:
    type_ = value.type
    if not value.is_valid:
        return None
    if pa.types.is_temporal(type_):
        return _shown_times(pa.array([value], type_))[0]
    if _is_narrow(type_):  # as a 64-bit number 1.1 would have the digits 1.100000023841858
        return float(str(type_.to_pandas_dtype()(value.as_py())))
    if pa.types.is_nested(type_):
        return _inner(value, _prompt_value)
    return _python_value(value)


def _is_narrow(type_: pa.DataType) -> bool:
    return bool(pa.types.is_float16(type_) or pa.types.is_float32(type_))


def _has_inner(type_: pa.DataType, is_wanted: Callable[[pa.DataType], bool]) -> bool:
    """Whether a nested type has such a type in it, at any depth."""
    if isinstance(type_, pa.BaseExtensionType):
        return _has_inner(type_.storage_type, is_wanted)
    inner = [type_.field(index).type for index in range(type_.num_fields)]
    return any(is_wanted(each) or _has_inner(each, is_wanted) for each in inner)


def _inner(value: pa.Scalar, convert: Callable[[pa.Scalar], Any]) -> Any:
    """A value made from those within it; a text in place of one that Python cannot hold."""
    types, type_ = pa.types, value.type
    if isinstance(type_, pa.BaseExtensionType) or types.is_dictionary(type_):
        return convert(value.value)
    if types.is_struct(type_):
        return {field.name: convert(value[index]) for index, field in enumerate(type_)}
    if types.is_map(type_):
        pairs = zip(value.values.field(0), value.values.field(1), strict=True)
        return [(convert(key), convert(item)) for key, item in pairs]
    if types.is_nested(type_):
        return [convert(each) for each in value.values]
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


def _shown_times(column: _Column) -> list[str | None]:
    """Dates and times as people write them: no zeros that end a second, offsets as +01:00, durations as 0:01:30."""
    if pa.types.is_duration(column.type):
        counts = column.cast(pa.int64()).to_pylist()
        return [None if count is None else _duration(count, _PER_SECOND[column.type.unit]) for count in counts]
    texts = _texts(column)
    return [None if text is None else _OFFSET.sub(r"\1:\2", _FRACTION_ZEROS.sub(r"\1", text)) for text in texts]


def _duration(count: int, per_second: int) -> str:
    seconds, rest = divmod(abs(count), per_second)
    fraction = f".{rest:0{len(str(per_second)) - 1}}".rstrip("0") if rest else ""
    return f"{'-' if count < 0 else ''}{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}{fraction}"
