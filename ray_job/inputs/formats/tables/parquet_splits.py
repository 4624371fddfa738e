"""The row groups of a Parquet file cut into splits."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import pyarrow.parquet as pq

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
    split: ParquetSplit | None = None
    first_row = 0
    for group in range(footer.num_row_groups):
        metadata = footer.row_group(group)
        num_rows = metadata.num_rows
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
