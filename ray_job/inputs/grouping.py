"""Rows that show the same picture, side by side.

Blocks are cut from neighbouring rows, and a block goes to one actor: so such rows meet in one engine, which encodes
their picture and computes their common prompt once, however many actors there are. It costs no shuffle, and reaches as
far as one window of a reading task does (`windows.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import Any

import pyarrow as pa

from ray_job.arrow.values import python_values

_LONG = 64  # characters or bytes; of what is longer, a hash is kept


def together(table: pa.Table, image_columns: Sequence[str]) -> pa.Table:
    """The same rows; those with equal pictures follow the first of them. Others keep their order."""
    if not image_columns or table.num_rows < 2:
        return table
    columns = [table.column(name) for name in image_columns]
    groups: dict[Hashable, list[int]] = {}
    for index in range(table.num_rows):
        # One row's at a time: pictures are large.
        shown = [python_values(column.slice(index, 1))[0] for column in columns]
        key = _key(shown) if any(shown) else index  # rows without a picture have nothing in common
        groups.setdefault(key, []).append(index)
    if len(groups) == table.num_rows:
        return table
    return table.take([index for group in groups.values() for index in group])


def _key(value: Any) -> Hashable:
    """Equal for equal values, and small."""
    if isinstance(value, dict):
        return tuple(_key(each) for each in value.values())
    if isinstance(value, list | tuple):
        return tuple(_key(each) for each in value)
    if isinstance(value, str | bytes) and len(value) > _LONG:
        data = value if isinstance(value, bytes) else value.encode(errors="surrogatepass")
        return type(value), hashlib.blake2b(data, digest_size=16).digest()
    return value  # type: ignore[no-any-return]
