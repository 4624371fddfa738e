"""A column of every type that Parquet holds, with a null in it; and values of them that Python cannot hold."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import numpy as np
import pyarrow as pa

FAR = 10**15  # in any unit but nanoseconds, far beyond the year 9999


class OfAUser(pa.ExtensionType):
    """An extension type that no other process knows."""

    def __init__(self) -> None:
        super().__init__(pa.int64(), "ray_job.tests.of_a_user")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> OfAUser:
        return cls()


def _simple() -> dict[str, tuple[pa.DataType, Any]]:
    """Types by name, each with a value."""
    when, text = datetime.datetime(2024, 3, 31, 2, 30), '"ü, a text long enough for a view"'
    numbers = {
        "int8": -5,
        "int16": 5,
        "int32": 5,
        "int64": 2**62,
        "uint8": 5,
        "uint16": 5,
        "uint32": 5,
        "uint64": 2**63,
    }
    floats = {"float16": np.float16(1.5), "float32": 1.5, "float64": float("inf")}
    texts = {"string": text, "large_string": text, "string_view": text}
    binary = {"binary": b"\xff", "large_binary": b"\xff", "binary_view": b"\xff" * 20, "bool_": True, "null": None}
    dates = {"date32": when.date(), "date64": when.date()}
    types = {name: (getattr(pa, name)(), value) for name, value in (numbers | floats | texts | binary | dates).items()}
    for unit in ("s", "ms", "us", "ns"):
        types[f"duration_{unit}"] = (pa.duration(unit), 10)
        for zone in (None, "UTC", "Asia/Kolkata", "+05:30"):
            types[f"timestamp_{unit}_{zone}"] = (pa.timestamp(unit, zone), when)
    types |= {
        "time32_s": (pa.time32("s"), when.time()),
        "time32_ms": (pa.time32("ms"), when.time()),
        "time64_us": (pa.time64("us"), when.time()),
        "time64_ns": (pa.time64("ns"), 1),
        "decimal32": (pa.decimal32(5, 2), decimal.Decimal("1.10")),
        "decimal64": (pa.decimal64(12, 2), decimal.Decimal("1.10")),
        "decimal128": (pa.decimal128(38, 10), decimal.Decimal("1.10")),
        "decimal256": (pa.decimal256(76, 0), decimal.Decimal("9" * 76)),
        "fixed_binary": (pa.binary(4), b"abcd"),
        "list": (pa.list_(pa.int8()), [1, None]),
        "list_of_some": (pa.list_(pa.field("item", pa.int32(), nullable=False)), [1]),
        "list_of_null": (pa.list_(pa.null()), [None]),
        "list_of_views": (pa.list_(pa.string_view()), [text, None]),
        "large_list": (pa.large_list(pa.list_(pa.float32())), [[1.5], None]),
        "fixed_list": (pa.list_(pa.float32(), 2), [1.5, None]),
        "list_view": (pa.list_view(pa.int64()), [1, None]),
        "large_list_view": (pa.large_list_view(pa.int64()), [1, None]),
        "struct": (pa.struct([("a", pa.timestamp("s")), ("b", pa.list_(pa.binary_view()))]), {"a": when, "b": [b"x"]}),
        "map": (pa.map_(pa.string(), pa.struct([("x", pa.date64())])), [("k", {"x": when.date()})]),
        "list_of_dictionaries": (pa.list_(pa.dictionary(pa.int8(), pa.string())), ["a", None, "a"]),
    }
    return types


def column(type_: pa.DataType, values: list[Any]) -> pa.Array:
    """An array, of extension types too."""
    if isinstance(type_, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(type_, column(type_.storage_type, values))
    return pa.array(values, type_)


def columns() -> dict[str, pa.Array]:
    """Three rows of every type: a value, null, the value."""
    found = {name: pa.array([value, None, value], type_) for name, (type_, value) in _simple().items()}
    ordered = pa.DictionaryArray.from_arrays(pa.array([0, None, 1], pa.int8()), ["low", "high"], ordered=True)
    dates = pa.array([datetime.date(2024, 1, 1)], pa.date32())
    found |= {
        "categories": pa.DictionaryArray.from_arrays(pa.array([1, None, 0], pa.int8()), ["low", "high"]),
        "ordered_categories": ordered,
        "dictionary_of_dates": pa.DictionaryArray.from_arrays(pa.array([0, None, 0], pa.int32()), dates),
        "uuid": column(pa.uuid(), [b"0123456789abcdef", None, b"0123456789abcdef"]),
        "json": column(pa.json_(), ["[1]", None, "{}"]),
        "bool8": column(pa.bool8(), [1, None, 0]),
        "opaque": column(pa.opaque(pa.int32(), "thing", "vendor"), [1, None, 2]),
        "tensor": column(pa.fixed_shape_tensor(pa.float32(), [2, 2]), [[1.0] * 4, None, [2.0] * 4]),
        "of_a_user": column(OfAUser(), [1, None, 2]),
    }
    return found


ID_TYPES = tuple(
    name
    for name, array in columns().items()
    if not name.startswith(("float", "bool", "null", "list", "large_list", "fixed_list", "struct", "map", "tensor"))
)


def far() -> dict[str, pa.Array]:
    """Columns whose first value Python cannot hold, or not exactly."""
    second = {"timestamp_s": pa.timestamp("s"), "timestamp_ms": pa.timestamp("ms"), "duration_s": pa.duration("s")}
    zones = {
        "timestamp_in_a_zone": pa.timestamp("us", "Asia/Kolkata"),
        "timestamp_nowhere": pa.timestamp("us", "No/Where"),
    }
    found = {
        name: pa.array([FAR * 1000 if name != "timestamp_s" else FAR, 0], type_)
        for name, type_ in (second | zones).items()
    }
    return found | {
        "date32": pa.array([2**30, 0], pa.date32()),
        "date32_before_year_1": pa.array([-(2**30), 0], pa.date32()),
        "timestamp_ns": pa.array([-(2**63), 1], pa.timestamp("ns")),
        "duration_ns": pa.array([2**62, 1], pa.duration("ns")),
        "time64_ns": pa.array([1, 2], pa.time64("ns")),
        "decimal256": pa.array([decimal.Decimal("9" * 76), decimal.Decimal(1)], pa.decimal256(76, 0)),
    }
