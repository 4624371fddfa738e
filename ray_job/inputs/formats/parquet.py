"""Rows of Parquet files.

Only the needed columns are read, page by page and in pieces of bounded size, so a row group larger than memory is no
obstacle (a single page is). Without an id column a row's id is `name#position`, where the
position counts the file's rows from 0: it depends on the file alone. Hive folders (`key=value`) become columns where
the files have none of that name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_job.arrow.column_types import carried_field
from ray_job.errors import InputError, RowError
from ray_job.inputs.columns import Found, Roles, choose_roles
from ray_job.inputs.files import InputFile, InputFiles
from ray_job.inputs.formats.parquet_splits import ParquetSplit, plan_splits
from ray_job.inputs.formats.row_groups import iter_pieces
from ray_job.inputs.formats.schemas import cast_checked, hive_fields, hive_values, is_text, text_checked, unify
from ray_job.inputs.source import Source, Split, first_rows, malformed
from ray_job.rows import ROW_ID
from ray_job.spec import JobSpec
from ray_job.storage.places import STORAGE_ERRORS, Location, open_input, reason

_BUFFER_BYTES = 2**20
_FOOTER_THREADS = 16


@dataclass(frozen=True)
class ParquetSource(Source):
    """Rows of Parquet files."""

    id_column: str | None

    def read(self, split: Split, max_rows: int) -> Iterator[pa.Table]:
        """See `Source.read`."""
        assert isinstance(split, ParquetSplit)
        hive = hive_values(split.name)
        left, position = split.num_rows, split.first_row
        with open_input(split.location) as handle:
            file = _open_parquet(split.location, handle)
            names = self._names_in(file.schema_arrow)
            for group, num_rows in zip(split.row_groups, split.group_rows, strict=True):
                found = 0
                for batch in _batches(file, split, group, names, max_rows) if left else ():
                    found += batch.num_rows
                    batch = batch.slice(0, left)
                    if batch.num_rows:
                        yield self._table(batch, hive, split, position)
                    left -= batch.num_rows
                    position += batch.num_rows
                    if not left:
                        return
                if found != num_rows:
                    raise InputError(
                        f"{split.location}: row group {group} has {found} rows, its footer said {num_rows}"
                    )

    def _names_in(self, schema: pa.Schema) -> list[str]:
        wanted = dict.fromkeys([*([self.id_column] if self.id_column is not None else []), *self.columns.names])
        return [name for name in wanted if name in schema.names]

    def _table(
        self, batch: pa.RecordBatch, hive: dict[str, str | None], split: ParquetSplit, position: int
    ) -> pa.Table:
        made = pa.array([f"{split.name}#{position + row}" for row in range(batch.num_rows)], pa.string())
        errors: list[RowError | None] = [None] * batch.num_rows
        columns = []
        for field in map(carried_field, self.columns):
            read, problems = _column(batch, field, hive, split.location)
            column, is_bad = text_checked(read)
            columns.append(column)
            _note(errors, is_bad, f"column {field.name!r} holds text that is not UTF-8")
            _note(errors, problems, f"column {field.name!r} is {field.type} in other files, and this value cannot be")
        if self.id_column is None:
            return self.table([made, *columns], errors)
        ids, _ = text_checked(
            _column(batch, carried_field(self.id_field).with_name(self.id_column), hive, split.location)[0]
        )
        if ids.null_count and not is_text(self.id_field.type):
            raise _null_id(split.location, self.id_column, f" in row {position + ids.is_null().index(True).as_py()}")
        if ids.null_count:
            problem = f"column {self.id_column!r}, the input.id_column, is null or not UTF-8"
            _note(errors, ids.is_null().to_pylist(), f"{problem}; the row is called by its position")
            ids = pc.coalesce(ids, made.cast(ids.type))
        return self.table([ids, *columns], errors)


def open_parquet(spec: JobSpec, found: InputFiles) -> ParquetSource:
    """Reads the footers and plans the splits.

    Raises:
        InputError: a footer is broken, or there are no rows.
        SpecError: the spec does not fit the columns.
    """
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        footers = list(pool.map(_footer, found.files))
    columns, clashes = unify((file.name, footer.schema.to_arrow_schema()) for file, footer in footers)
    partitions = hive_fields([hive_values(file.name) for file in found.files])
    known = {*columns.names, *clashes}
    columns = pa.schema([*columns, *(field for field in partitions if field.name not in known)])
    roles = choose_roles(spec, Found(columns, clashes=clashes), "input")
    splits = [split for file, footer in footers for split in plan_splits(file, footer, {*roles.delivered, roles.id})]
    id_type = pa.string() if roles.id is None else columns.field(roles.id).type
    _check_ids(footers, roles, id_type)
    return ParquetSource(
        id_field=pa.field(ROW_ID, id_type),
        columns=roles.travelling(columns),
        kept=tuple(columns.field(name) for name in roles.kept),
        image_columns=roles.images,
        image_root=found.image_root(spec.input),
        prompt=roles.prompt,
        overrides_column=roles.overrides,
        splits=first_rows(splits, spec.input.limit),
        skipped=found.skipped,
        id_column=roles.id,
    )


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


def _batches(
    file: pq.ParquetFile, split: ParquetSplit, group: int, names: Sequence[str], max_rows: int
) -> Iterator[pa.RecordBatch]:
    try:
        yield from iter_pieces(file, group, names, max_rows)
    except (*STORAGE_ERRORS, ValueError) as error:
        raise InputError(
            f"{split.location}: row group {group} cannot be read: {reason(error)}. If the file is damaged, write it "
            "again or take it out of input.path; if the storage failed, run the job again"
        ) from None


def _column(
    batch: pa.RecordBatch, field: pa.Field, hive: dict[str, str | None], location: Location
) -> tuple[pa.Array, list[str | None]]:
    """A column of the batch in the field's type, null where this file has none; and what is wrong with which value."""
    try:
        if field.name in batch.schema.names:
            return cast_checked(batch.column(field.name), field.type)
        value = hive.get(field.name)
        if value is None:
            return pa.nulls(batch.num_rows, field.type), []
        return pa.repeat(pa.scalar(value, pa.string()), batch.num_rows).cast(field.type), []
    except pa.ArrowException as error:
        raise InputError(f"{location}: column {field.name!r} is not {field.type}: {reason(error)}") from None


def _note(errors: list[RowError | None], problems: Sequence[str | bool | None], message: str) -> None:
    """Gives rows with a problem their error; a text says more than the message."""
    for row, problem in enumerate(problems):
        if problem:
            errors[row] = errors[row] or malformed(f"{message}: {problem}" if isinstance(problem, str) else message)


def _check_ids(footers: Sequence[tuple[InputFile, pq.FileMetaData]], roles: Roles, type_: pa.DataType) -> None:
    """Finds null ids early, where the footers count them and they could not be replaced by a made id."""
    if roles.id is None or is_text(type_):
        return
    for file, footer in footers:
        paths = [footer.schema.column(index).path for index in range(footer.num_columns)]
        if roles.id not in paths and roles.id not in hive_values(file.name):
            raise _null_id(file.location, roles.id, ": the file has no such column")
        for group in range(footer.num_row_groups) if roles.id in paths else ():
            statistics = footer.row_group(group).column(paths.index(roles.id)).statistics
            if statistics is not None and statistics.has_null_count and statistics.null_count:
                raise _null_id(file.location, roles.id, f" in row group {group}")


def _null_id(location: Location, column: str, where: str) -> InputError:
    return InputError(
        f"{location}: column {column!r}, the input.id_column, is null{where}. Fill it in, or name another column"
    )
