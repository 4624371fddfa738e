"""Rows of Parquet files.

Only the needed columns are read, page by page and in pieces of bounded size, so a row group larger than memory is no
obstacle (a single page is). Hive folders (`key=value`) become columns where the files have none of that name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_job.errors import InputError
from ray_job.inputs.columns import Roles, choose_roles
from ray_job.inputs.files import InputFile, InputFiles
from ray_job.inputs.formats.parquet_splits import ParquetSplit, plan_splits
from ray_job.inputs.formats.row_groups import iter_pieces
from ray_job.inputs.formats.schemas import hive_values, is_text
from ray_job.inputs.formats.tables import TableSource, TableSplit, find_columns, null_id
from ray_job.spec import JobSpec
from ray_job.storage.places import STORAGE_ERRORS, Location, open_input, reason

_BUFFER_BYTES = 2**20
_FOOTER_THREADS = 16


@dataclass(frozen=True)
class ParquetSource(TableSource):
    """Rows of Parquet files."""

    def batches(self, split: TableSplit, names: Sequence[str], max_rows: int) -> Iterator[pa.RecordBatch]:
        """See `TableSource.batches`."""
        assert isinstance(split, ParquetSplit)
        with open_input(split.location) as handle:
            file = _open_parquet(split.location, handle)
            present = [name for name in names if name in file.schema_arrow.names]
            for group, num_rows in zip(split.row_groups, split.group_rows, strict=True):
                found = 0
                for batch in _pieces(file, split, group, present, max_rows):
                    found += batch.num_rows
                    yield batch
                if found != num_rows:
                    raise InputError(
                        f"{split.location}: row group {group} has {found} rows, its footer said {num_rows}"
                    )


def open_parquet(spec: JobSpec, found: InputFiles) -> ParquetSource:
    """Reads the footers and plans the splits.

    Raises:
        InputError: a footer is broken, or there are no rows.
        SpecError: the spec does not fit the columns.
    """
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        footers = list(pool.map(_footer, found.files))
    columns = find_columns((file.name, footer.schema.to_arrow_schema()) for file, footer in footers)
    roles = choose_roles(spec, columns, "input")
    splits = [split for file, footer in footers for split in plan_splits(file, footer, {*roles.delivered, roles.id})]
    _check_ids(footers, roles, columns.columns)
    return ParquetSource.planned(spec, found, columns.columns, roles, splits, id_column=roles.id)


def _footer(file: InputFile) -> tuple[InputFile, pq.FileMetaData]:
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
        raise InputError(
            f"{location}: not a Parquet file, or cut short: {reason(error)}. "
            "Write it again or take it out of input.path"
        ) from None


def _pieces(
    file: pq.ParquetFile, split: ParquetSplit, group: int, names: Sequence[str], max_rows: int
) -> Iterator[pa.RecordBatch]:
    try:
        yield from iter_pieces(file, group, names, max_rows)
    except (*STORAGE_ERRORS, ValueError) as error:
        raise InputError(
            f"{split.location}: row group {group} cannot be read: {reason(error)}. If the file is damaged, write it "
            "again or take it out of input.path; if the storage failed, run the job again"
        ) from None


def _check_ids(footers: Sequence[tuple[InputFile, pq.FileMetaData]], roles: Roles, columns: pa.Schema) -> None:
    """Finds null ids early, where the footers count them and they could not be replaced by a made id."""
    if roles.id is None or is_text(columns.field(roles.id).type):
        return
    for file, footer in footers:
        paths = [footer.schema.column(index).path for index in range(footer.num_columns)]
        if roles.id not in paths and roles.id not in hive_values(file.name):
            raise null_id(file.location, roles.id, ": the file has no such column")
        for group in range(footer.num_row_groups) if roles.id in paths else ():
            statistics = footer.row_group(group).column(paths.index(roles.id)).statistics
            if statistics is not None and statistics.has_null_count and statistics.null_count:
                raise null_id(file.location, roles.id, f" in row group {group}")
