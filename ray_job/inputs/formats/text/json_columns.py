"""JSON values as columns: the type of each key, and each value in that type, or an error for its row.

A text stays as it is. A key whose values are all whole numbers, all numbers or all booleans becomes int64, float64 or
bool; everything else becomes text, in which a value that is not one is written as JSON. So do numbers among which a
whole one has more digits than a float64 holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from ray_job.errors import Stage
from ray_job.inputs.formats.text.records import text_of
from ray_job.inputs.source import malformed
from ray_job.prompts.json_text import has_half_pair, parse_json

_INT64 = range(-(2**63), 2**63)
_EXACT = range(-(2**53), 2**53 + 1)  # whole numbers that a float64 holds, each one
_SEQUENCE_MARK = b"\x1e"  # before each text of a JSON text sequence, RFC 7464
MAX_KEYS = 10_000  # so that keys which are data themselves do not fill the memory
_NUMBERS = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}


def parse_object(content: bytes) -> dict[str, Any]:
    """The object a line holds.

    Raises:
        RowError: as `parse_json`, or it is no object.
    """
    text = text_of(content.removeprefix(_SEQUENCE_MARK))
    # A text with half a character costs a row its column, not the line its id.
    value = parse_json(text, stage=Stage.READ, allow_surrogates=True, allow_nan=True)
    if not isinstance(value, dict):
        raise malformed(f"must be a JSON object, got {type(value).__name__}")
    return value


class KeyTypes:
    """What the values of every key are, learned object by object: as much as there are keys, however many objects."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, int]] = {}  # by key, in order of first sight, and name of the values' type

    def add(self, item: Mapping[str, Any]) -> None:
        """Learns an object; a key that cannot be a column's name is none."""
        counts = self._counts
        for key, value in item.items():
            kinds = counts.get(key)
            if kinds is None:
                if has_half_pair(key) or len(counts) >= MAX_KEYS:
                    continue
                kinds = counts[key] = {}
            if value is not None:
                kind = kind_of(value)
                kinds[kind] = kinds.get(kind, 0) + 1

    def columns(self) -> dict[str, pa.DataType]:
        """The type of every key, in order of first sight."""
        return {key: _type_of(set(kinds)) for key, kinds in self._counts.items()}

    def num_values(self, key: str) -> int:
        """How many objects had a value for a key."""
        return sum(self._counts.get(key, {}).values())

    @property
    def is_full(self) -> bool:
        """Whether there are more keys than are learned."""
        return len(self._counts) >= MAX_KEYS


def kind_of(value: Any) -> str:
    """Values of one kind decide alike about the type of their column."""
    kind = type(value).__name__
    if kind != "int" or value in _EXACT:
        return kind
    return "long" if value in _INT64 else "longer"


def converter(type_: pa.DataType) -> Callable[[Any], Any]:
    """What turns a JSON value into a value of a column, or raises the row's error."""
    converters: dict[pa.DataType, Callable[[Any], Any]] = {
        pa.int64(): _as_int,
        pa.float64(): _as_float,
        pa.bool_(): _as_bool,
        pa.list_(pa.string()): as_texts,
        pa.list_(pa.large_string()): as_texts,
    }
    return converters.get(type_, as_text)


def as_text(value: Any) -> str | None:
    """A text as it is, anything else as JSON."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise malformed(f"holds half of a surrogate pair at character {error.start}") from None
    return text


def as_texts(value: Any) -> list[str | None] | None:
    """A list of texts; a single text counts as a list of one, an object of {bytes, path} or {url} as its text."""
    if value is None:
        return None
    items = value if isinstance(value, list) else [value]
    return [None if item is None else as_text(_reference(item)) for item in items]


def _reference(item: Any) -> str:
    if isinstance(item, dict):
        item = next((item[key] for key in ("bytes", "path", "url") if isinstance(item.get(key), str)), item)
    if not isinstance(item, str):
        raise malformed(f"must be a text or a list of texts, got {type(item).__name__}")
    return item


def _type_of(kinds: set[str]) -> pa.DataType:
    if kinds == {"int", "float"}:
        return pa.float64()
    if "long" in kinds and kinds <= {"int", "long"}:
        return pa.int64()
    return _NUMBERS.get(next(iter(kinds)), pa.string()) if len(kinds) == 1 else pa.string()


def _as_int(value: Any) -> int | None:
    if value is None or (type(value) is int and value in _INT64):
        return value
    raise malformed(f"must be a whole number like in the other rows, got {json.dumps(value)[:60]}")


def _as_float(value: Any) -> float | None:
    if value is None or type(value) is float or (type(value) is int and value in _EXACT):
        return value
    raise malformed(f"must be a number like in the other rows, got {json.dumps(value)[:60]}")


def _as_bool(value: Any) -> bool | None:
    if value is None or type(value) is bool:
        return value
    raise malformed(f"must be true or false like in the other rows, got {json.dumps(value)[:60]}")
