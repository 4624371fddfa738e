"""Rows of a table whose data files are Parquet and whose log says what they mean: Delta and Iceberg.

The log tells which files there are, what their columns are called there, which columns have one value in a whole file,
and which rows are deleted. A deleted row is not delivered and not counted. A row's id is `data file#position` in that
file, deleted rows counted too, so that it stays what it is until its file is written anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ray_job.errors import InputError
from ray_job.inputs.columns import Found, choose_roles
from ray_job.inputs.files import InputFile, InputFiles
from ray_job.inputs.formats.tables.parquet import FOOTER_THREADS, ParquetSource, check_ids, read_footer
from ray_job.inputs.formats.tables.parquet_splits import ParquetSplit, plan_splits
from ray_job.inputs.formats.tables.schemas import unify
from ray_job.inputs.formats.tables.table_source import Rows, TableSplit
from ray_job.spec import JobSpec
from ray_job.storage.places import Location, account_of, is_same_storage, locate, parse_uri

Positions = npt.NDArray[np.int64]
Names: TypeAlias = Mapping[str, tuple[str, "Names"]]
"""What fields are called: name in the file → name in the table, and the same of the fields within it."""
NO_POSITIONS: Positions = np.zeros(0, np.int64)


@dataclass(frozen=True)
class DataFile:
    """A data file as the table's log tells of it."""

    file: InputFile
    values: Mapping[str, str | None] = field(default_factory=dict)  # columns with one value in the file, as text
    deleted: Positions = field(default_factory=lambda: NO_POSITIONS)  # rows, sorted


def located(path: str, root: Location) -> Location:
    """Where a file lies that a log names by a path or URI; reached as the table is where both are on one storage."""
    scheme, place = parse_uri(path) or ("file", path)
    return root.at(place) if is_same_storage(scheme, account_of(path), root) else locate(path)


@dataclass(frozen=True, slots=True)
class DataFileSplit(ParquetSplit):
    """Neighbouring row groups of one data file; `num_rows` are those that are not deleted."""

    values: Mapping[str, str | None]
    names: Names  # of the file's columns that the table has
    deleted: bytes  # of the split's rows, positions in the file as int64

    @property
    def constants(self) -> Mapping[str, str | None]:
        """Columns that have one value in all the file, as text."""
        return self.values

    def held_name(self, column: str) -> str:
        """What the file calls a column."""
        return next((held for held, (name, _) in self.names.items() if name == column), column)


@dataclass(frozen=True)
class DataFileSource(ParquetSource):
    """Rows of a Delta or Iceberg table."""

    def batches(self, split: TableSplit, names: Sequence[str], max_rows: int) -> Iterator[Rows]:
        """See `TableSource.batches`."""
        assert isinstance(split, DataFileSplit)
        deleted = np.frombuffer(split.deleted, np.int64)
        wanted = {held: name for held, (name, _) in split.names.items() if name in names}
        position = split.first_row
        for rows in super().batches(split, list(wanted), max_rows):
            batch = rows.batch
            positions = np.arange(position, position + batch.num_rows)
            position += batch.num_rows
            is_live = ~np.isin(positions, deleted)
            ids = [f"{split.name}#{place}" for place in positions[is_live]]
            batch = batch if is_live.all() else batch.filter(pa.array(is_live))
            yield Rows(_renamed(batch, split.names), pa.array(ids, pa.string()), problem=rows.problem)


def open_data_files(
    spec: JobSpec,
    found: InputFiles,
    columns: pa.Schema,
    files: Sequence[DataFile],
    names_in: Callable[[pa.Schema], Names],
    version: int,
) -> DataFileSource:
    """Reads the footers and plans the splits.

    Args:
        spec: the job's.
        found: the table's folder.
        columns: of the table.
        files: of the version that is read, in order.
        names_in: which columns of the table a file has, by its schema, and under which names.
        version: that is read, for the record.

    Raises:
        InputError: a file is missing or broken, or ids are null.
        SpecError: the spec does not fit the columns.
    """
    columns, clashes = unify([(str(found.root), columns)])
    roles = choose_roles(spec, Found(columns, clashes=clashes), "input")
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        footers = list(pool.map(read_footer, [file.file for file in files]))
    splits: list[DataFileSplit] = []
    for file, (_, footer) in zip(files, footers, strict=True):
        names = names_in(footer.schema.to_arrow_schema())
        held = {name: place for place, (name, _) in names.items()}
        if roles.id is not None and roles.id not in file.values:
            check_ids(file.file, footer, roles.id, held.get(roles.id), columns)
        wanted = {held.get(name) for name in (*roles.delivered, roles.id) if name is not None}
        splits += _live(file, footer, wanted, names)
    return DataFileSource.planned(spec, found, columns, roles, splits, id_column=roles.id, version=version)


def _live(file: DataFile, footer: pq.FileMetaData, wanted: set[str | None], names: Names) -> Iterator[DataFileSplit]:
    if len(file.deleted) and not 0 <= file.deleted[0] <= file.deleted[-1] < footer.num_rows:
        raise InputError(f"{file.file.location}: rows are said to be deleted that it does not have")
    for split in plan_splits(file.file, footer, wanted):
        first, last = np.searchsorted(file.deleted, (split.first_row, split.first_row + split.num_rows))
        deleted = file.deleted[first:last]
        yield DataFileSplit(
            split.name,
            split.num_rows - len(deleted),
            split.num_bytes,
            split.location,
            split.first_row,
            split.row_groups,
            split.group_rows,
            file.values,
            names,
            deleted.tobytes(),
        )


def _renamed(batch: pa.RecordBatch, names: Names) -> pa.RecordBatch:
    """The columns, and the fields within them, as the table calls them."""
    columns = {}
    for held, column in zip(batch.schema.names, batch.columns, strict=True):
        name, inner = names[held]
        type_ = _renamed_type(column.type, inner)
        columns[name] = column if type_ == column.type else column.view(type_)
    return pa.RecordBatch.from_pydict(columns) if columns else batch


def _renamed_type(type_: pa.DataType, names: Names) -> pa.DataType:
    if pa.types.is_struct(type_):
        pairs = [(field, names.get(field.name, (field.name, {}))) for field in type_]
        return pa.struct([f.with_name(name).with_type(_renamed_type(f.type, inner)) for f, (name, inner) in pairs])
    if pa.types.is_map(type_):
        item = type_.item_field
        return pa.map_(type_.key_field, item.with_type(_renamed_type(item.type, names)), type_.keys_sorted)
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        field = type_.value_field.with_type(_renamed_type(type_.value_type, names))
        return pa.list_(field) if pa.types.is_list(type_) else pa.large_list(field)
    return type_
