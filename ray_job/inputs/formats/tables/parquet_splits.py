"""The row groups of a Parquet file cut into splits."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import pyarrow.parquet as pq

from ray_job.errors import InputError
from ray_job.inputs.files import InputFile
from ray_job.inputs.formats.tables.table_source import TableSplit

SPLIT_BYTES = 32 * 2**20
SPLIT_ROWS = 4096


@dataclass(frozen=True, slots=True)
class ParquetSplit(TableSplit):
    """Neighbouring row groups of one file."""

    row_groups: tuple[int, ...]
    group_rows: tuple[int, ...]


def plan_splits(file: InputFile, footer: pq.FileMetaData, wanted: Collection[str | None]) -> Iterator[ParquetSplit]:
    """Neighbouring row groups, together when they are small.

    Args:
        file: the file.
        footer: its own.
        wanted: the columns that are read, by name.
    """
    used = [index for index in range(footer.num_columns) if footer.schema.column(index).path.split(".")[0] in wanted]
    lists = [footer.schema.column(index).max_repetition_level > 0 for index in range(footer.num_columns)]
    flat = lists.index(False) if False in lists else None
    split: ParquetSplit | None = None
    first_row = 0
    for group in range(footer.num_row_groups):
        metadata = footer.row_group(group)
        num_rows = _num_rows(file, footer, group, flat)
        num_bytes = sum(metadata.column(index).total_uncompressed_size for index in used)
        if split is not None and (split.num_bytes + num_bytes > SPLIT_BYTES or split.num_rows + num_rows > SPLIT_ROWS):
            yield split
            split = None
        if split is None:
            split = ParquetSplit(file.name, num_rows, num_bytes, file.location, first_row, (group,), (num_rows,))
        else:
            split = replace(
                split,
                num_rows=split.num_rows + num_rows,
                num_bytes=split.num_bytes + num_bytes,
                row_groups=(*split.row_groups, group),
                group_rows=(*split.group_rows, num_rows),
            )
        first_row += num_rows
    if split is not None:
        yield split


def _num_rows(file: InputFile, footer: pq.FileMetaData, number: int, flat: int | None) -> int:
    """Rows of a group; a column without lists has as many values, or one of the two numbers is damaged."""
    group = footer.row_group(number)
    num_values = group.num_rows if flat is None else group.column(flat).num_values
    if not 0 <= group.num_rows == num_values:
        raise InputError(
            f"{file.location}: its footer is damaged: row group {number} has {group.num_rows} rows, and a column of it "
            f"{num_values} values. Write the file again or take it out of input.path"
        )
    return int(group.num_rows)
