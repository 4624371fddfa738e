"""Values of columns as text in a prompt, as a person would write them.

text           as it is; bytes are UTF-8
numbers        in the fewest digits that tell the value: 1.1, 3, 2.0, 1.10 for a decimal, nan
truth          true or false
dates, times   2024-01-31, 09:30:00, 2024-01-31 09:30:00+01:00; durations 0:01:30 (`arrow/values.py`)
lists          their items between commas; a null among them is null
structs, maps  JSON, and so are lists and structs within a list
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from ray_job.errors import ErrorCode, RowError


def text_of(value: Any) -> str:
    """The text of a value as `arrow.values.prompt_values` gives it.

    Raises:
        RowError: ROW_MALFORMED for bytes that are no text.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list) and not _is_map(value):
        return ", ".join(item if isinstance(item, str) else _json(item, quoted=False) for item in value)
    return _json(value, quoted=False)


def _json(value: Any, quoted: bool = True) -> str:
    """JSON; what is a text there stands without quotes where it is all there is."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value) if quoted or not isinstance(value, float) else repr(value)
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, dict):
        return _object(value.items())
    if isinstance(value, list):
        return _object(value) if _is_map(value) else f"[{', '.join(map(_json, value))}]"
    text = _decoded(value) if isinstance(value, bytes) else str(value)
    return json.dumps(text, ensure_ascii=False) if quoted else text


def _object(items: Iterable[tuple[Any, Any]]) -> str:
    pairs = (f"{json.dumps(_json(key, quoted=False), ensure_ascii=False)}: {_json(value)}" for key, value in items)
    return f"{{{', '.join(pairs)}}}"


def _is_map(value: list[Any]) -> bool:
    """Arrow gives a map as a list of pairs, and nothing else as tuples."""
    return bool(value) and isinstance(value[0], tuple)


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise RowError(
            ErrorCode.ROW_MALFORMED,
            f"bytes that are not UTF-8 text at byte {error.start}, and a prompt is text; leave them out of it",
        ) from None
