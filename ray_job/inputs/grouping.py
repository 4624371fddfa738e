"""Rows that show the same picture, side by side.

Blocks are cut from neighbouring rows, and a block goes to one actor: so such rows meet in one engine, which encodes
their picture and computes their common prompt once, however many actors there are. It costs no shuffle, and reaches as
far as a reading task's split does (`parquet.SPLIT_ROWS` rows).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import pyarrow as pa

from ray_job.storage.values import python_values


def together(table: pa.Table, image_columns: Sequence[str]) -> pa.Table:
    """The same rows; those with equal pictures follow the first of them. Others keep their order."""
    if not image_columns or table.num_rows < 2:
        return table
    columns = [python_values(table.column(name)) for name in image_columns]
    groups: dict[Hashable, list[int]] = {}
    for index, shown in enumerate(zip(*columns, strict=True)):
        key = _hashable(shown) if any(shown) else index  # rows without a picture have nothing in common
        groups.setdefault(key, []).append(index)
    if len(groups) == table.num_rows:
        return table
    return table.take([index for group in groups.values() for index in group])


def _hashable(value: Any) -> Hashable:
    if isinstance(value, dict):
        return tuple(_hashable(each) for each in value.values())
    if isinstance(value, list | tuple):
        return tuple(_hashable(each) for each in value)
    return value  # type: ignore[no-any-return]
