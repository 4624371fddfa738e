"""Types that a spec names, as Arrow's."""

from __future__ import annotations

import pyarrow as pa

from ray_job.errors import SpecError

_SHORT = {
    "text": pa.string(),
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
}


def parse_type(text: str) -> pa.DataType:
    """The type of a name: a short one (text, int, float, date, time, timestamp), or Arrow's own, as `timestamp[ms]`.

    Raises:
        SpecError: there is none of that name.
    """
    if text in _SHORT:
        return _SHORT[text]
    try:
        type_ = pa.type_for_alias(text)
    except ValueError:
        type_ = pa.null()
    if type_ == pa.null() or not _is_spelled(type_):
        names = ", ".join(_SHORT)
        raise SpecError([f"input.column_types: no type {text!r}; {names}, bool, or one of Arrow's such as int32"])
    return type_


def _is_spelled(type_: pa.DataType) -> bool:
    """Whether values can be read from text."""
    try:
        pa.array([], pa.string()).cast(type_)
    except pa.ArrowNotImplementedError:
        return bool(pa.types.is_time(type_))  # read behind a date
    return not pa.types.is_nested(type_)
