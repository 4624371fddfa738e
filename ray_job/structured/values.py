"""A JSON answer as a value of the type that its schema has in Arrow.

A value fits or does not: a number too large for its type, a text with half of a surrogate pair, a required key that is
not there make the whole answer misfit, so that no value is lost or changed in silence. Two things are: keys that a
struct has no field for are left out, and a number is rounded to 64 bits as any reader of JSON does.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

import pyarrow as pa

from ray_job.structured.arrow_types import JSON_TEXT

_LARGEST_EXACT = 2**53  # beyond it a float that looks whole may have been rounded


class _Misfit(ValueError):  # noqa: N818 - it names what happened
    pass


def parsed_value(text: str, type_: pa.DataType) -> Any:
    """The value of a JSON text, as Python's; JSON texts stand for values of type `arrow.json`.

    None where the text is not JSON, or does not fit the type: a row with a form of its own may have either.
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
        fitted = _fitted(value, pa.field("", type_))
    except (ValueError, RecursionError):  # _Misfit among them
        return None
    return text.strip() if type_ == JSON_TEXT and value is not None else fitted


def _fitted(value: Any, field: pa.Field) -> Any:
    """A JSON value as one of the field. Raises ValueError where it does not fit."""
    type_, types = field.type, pa.types
    if value is None:
        return None if field.nullable else _misfit()
    if type_ == JSON_TEXT:
        return _checked(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
    if isinstance(value, dict) and types.is_struct(type_):
        return {inner.name: _fitted(value.get(inner.name), inner) for inner in type_}
    if isinstance(value, list) and types.is_list(type_):
        return [_fitted(item, type_.value_field) for item in value]
    if isinstance(value, str) and types.is_string(type_):
        return _checked(value)
    if isinstance(value, bool):
        return value if types.is_boolean(type_) else _misfit()
    if isinstance(value, int | float) and types.is_int64(type_):
        return _integer(value)
    if isinstance(value, int | float) and types.is_float64(type_):
        return _float(value)
    return _misfit()


def _integer(value: int | float) -> int:
    if isinstance(value, float) and not (value.is_integer() and abs(value) <= _LARGEST_EXACT):
        _misfit()
    return int(value) if -(2**63) <= value < 2**63 else _misfit()


def _float(value: int | float) -> float:
    try:
        number = float(value)
    except OverflowError:
        _misfit()
    return number if math.isfinite(number) else _misfit()


def _checked(text: str) -> str:
    text.encode()  # half of a surrogate pair raises UnicodeEncodeError, a ValueError
    return text


def _refuse(name: str) -> NoReturn:
    raise _Misfit(f"{name} is not JSON")


def _misfit() -> NoReturn:
    raise _Misfit
