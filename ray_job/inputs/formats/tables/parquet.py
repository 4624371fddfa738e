"""Rows of Parquet files.

Only the needed columns are read, page by page and in pieces of bounded size, so a row group larger than memory is no
obstacle (a single page is). Hive folders (`key=value`) become columns where the files have none of that name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_job.errors import InputError
from ray_job.inputs.columns import choose_roles
from ray_job.inputs.earlier_output import check_finished
from ray_job.inputs.files import InputFile, InputFiles
from ray_job.inputs.formats.tables.damaged import PIECE_ROWS, Group, iter_rows
from ray_job.inputs.formats.tables.parquet_splits import ParquetSplit, plan_splits
from ray_job.inputs.formats.tables.row_groups import iter_pieces
from ray_job.inputs.formats.tables.schemas import hive_values, is_text
from ray_job.inputs.formats.tables.table_source import Rows, TableSource, TableSplit, find_columns, null_id
from ray_job.inputs.table_folders import check_loose
from ray_job.spec import JobSpec
from ray_job.storage.damage import is_damage
from ray_job.storage.places import STORAGE_ERRORS, Location, open_input, reason

_BUFFER_BYTES = 2**20
FOOTER_THREADS = 16


@dataclass(frozen=True)
class ParquetSource(TableSource):
    """Rows of Parquet files."""

    def batches(self, split: TableSplit, names: Sequence[str], max_rows: int) -> Iterator[Rows]:
        """See `TableSource.batches`."""
        assert isinstance(split, ParquetSplit)
        with open_input(split.location) as handle:
            file = _open_parquet(split.location, handle)
            present = [name for name in names if name in file.schema_arrow.names]
            id_name = None if self.id_column is None else split.held_name(self.id_column)
            position = split.first_row
            for number, num_rows in zip(split.row_groups, split.group_rows, strict=True):
                _check_unchanged(split.location, file, number, num_rows)
                read = partial(iter_pieces, file, number, max_rows=PIECE_ROWS)
                group = Group(split, f"row group {number}", position, num_rows, read)
                yield from iter_rows(group, present, id_name, max_rows)
                position += num_rows


def open_parquet(spec: JobSpec, found: InputFiles) -> ParquetSource:
    """Reads the footers and plans the splits.

    Raises:
        InputError: a footer is broken, or the files are an output that is not finished.
        SpecError: the spec does not fit the columns.
    """
    check_loose(found.root, [file.name for file in found.files])
    check_finished(found.root, [file.name for file in found.files])
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        footers = list(pool.map(read_footer, found.files))
    columns = find_columns((file.name, footer.schema.to_arrow_schema()) for file, footer in footers)
    roles = choose_roles(spec, columns, "input")
    splits = [split for file, footer in footers for split in plan_splits(file, footer, {*roles.delivered, roles.id})]
    for file, footer in footers:
        if roles.id is not None and roles.id not in hive_values(file.name):
            check_ids(file, footer, roles.id, roles.id, columns.columns)
    return ParquetSource.planned(spec, found, columns.columns, roles, splits, id_column=roles.id)


def read_footer(file: InputFile) -> tuple[InputFile, pq.FileMetaData]:
    """A file with its footer.

    Raises:
        InputError: it is not there, or broken.
    """
    with open_input(file.location) as handle:
        return file, _open_parquet(file.location, handle).metadata


def _open_parquet(location: Location, handle: Any) -> pq.ParquetFile:
    try:
        # pre_buffer would read a whole row group at once.
        file = pq.ParquetFile(
            handle,
            pre_buffer=False,
            buffer_size=_BUFFER_BYTES,
            page_checksum_verification=True,
            binary_type=pa.large_binary(),  # where the file itself does not say: a row may hold more than 2 GiB
        )
        _ = file.schema_arrow  # where a damaged name or type shows
        return file
    except (*STORAGE_ERRORS, ValueError) as error:
        if not is_damage(error):
            raise InputError(f"{location}: cannot be read: {reason(error)}. Run the job again") from None
        raise InputError(
            f"{location}: not a Parquet file, or cut short: {reason(error)}. "
            "Write it again or take it out of input.path"
        ) from None


def _check_unchanged(location: Location, file: pq.ParquetFile, number: int, num_rows: int) -> None:
    found = file.metadata.row_group(number).num_rows if number < file.num_row_groups else 0
    if found != num_rows:
        raise InputError(
            f"{location}: row group {number} has {found} rows, and had {num_rows} when the job began: the file has "
            "changed. Run the job again"
        )


def check_ids(file: InputFile, footer: pq.FileMetaData, column: str, name: str | None, columns: pa.Schema) -> None:
    """Finds null ids early, where the footer counts them and they could not be replaced by a made id.

    Args:
        file: the file.
        footer: its own.
        column: the id column.
        name: what the file calls it; None where it does not have it.
        columns: of all files.

    Raises:
        InputError: there are null ids.
    """
    if is_text(columns.field(column).type):
        return
    paths = [footer.schema.column(index).path for index in range(footer.num_columns)]
    if name not in paths:
        raise null_id(file.location, column, ": the file has no such column")
    for group in range(footer.num_row_groups):
        statistics = footer.row_group(group).column(paths.index(name)).statistics
        if statistics is not None and statistics.has_null_count and statistics.null_count:
            raise null_id(file.location, column, f" in row group {group}")
