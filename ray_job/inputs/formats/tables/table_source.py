"""What all inputs have in common that come as Arrow batches: ids, types, text, constant columns, exact counts.

A format plans splits with exact numbers of rows and reads the batches of one; all else is here. Without an id column a
row's id is `name#position`, where the position counts its file's rows from 0, or what the format calls it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from ray_job.arrow.column_types import carried_field
from ray_job.errors import InputError, RowError
from ray_job.inputs.columns import Found
from ray_job.inputs.formats.tables.schemas import (
    cast_checked,
    hive_columns,
    hive_values,
    image_features,
    is_text,
    repeated,
    text_checked,
    unify,
)
from ray_job.inputs.source import FileSplit, Source, Split, malformed
from ray_job.rows import ERROR_TYPE, READ_ERROR
from ray_job.storage.places import Location, reason


@dataclass(frozen=True, slots=True)
class TableSplit(FileSplit):
    """Neighbouring rows of one file."""

    first_row: int  # position in the file of the first row

    @property
    def constants(self) -> Mapping[str, str | None]:
        """Columns that have one value in all the file, as text; here of its `key=value` folders."""
        return hive_values(self.name)

    def held_name(self, column: str) -> str:
        """What the file calls a column."""
        return column


@dataclass(frozen=True, slots=True)
class Rows:
    """Neighbouring rows as a format reads them."""

    batch: pa.RecordBatch  # the columns asked for that there are
    made_ids: pa.Array | None = None  # text; None: `name#position`
    errors: pa.Array | None = None  # of ERROR_TYPE, null for a good row
    problem: RowError | None = None  # why they could not be read, all of them; the batch has their ids, or no column

    def first(self, num_rows: int) -> Rows:
        """The first of them."""
        if num_rows >= self.batch.num_rows:
            return self
        parts = {"batch": self.batch, "made_ids": self.made_ids, "errors": self.errors}
        return replace(self, **{name: part.slice(0, num_rows) for name, part in parts.items() if part is not None})


@dataclass(frozen=True)
class TableSource(Source):
    """Rows of Arrow batches."""

    id_column: str | None

    @abstractmethod
    def batches(self, split: TableSplit, names: Sequence[str], max_rows: int) -> Iterator[Rows]:
        """The rows of a split in order, in batches of at most `max_rows` rows; more after its last are not asked for.

        Args:
            split: as planned, or one that ends earlier.
            names: the columns to read; those that the file does not have are left out.
            max_rows: of a batch.

        Raises:
            InputError: the file cannot be read.
        """

    def read(self, split: Split, max_rows: int) -> Iterator[pa.Table]:
        """See `Source.read`."""
        assert isinstance(split, TableSplit)
        left, position = split.num_rows, split.first_row
        names = dict.fromkeys([*([self.id_column] if self.id_column is not None else []), *self.columns.names])
        with closing(self.batches(split, list(names), max_rows)) as batches:  # type: ignore[type-var]
            while left:
                rows = next(batches, None)
                if rows is None:
                    raise InputError(
                        f"{split.location}: {left} of {split.num_rows} rows are no longer there; it has changed since "
                        "the job began. Run it again"
                    )
                rows = rows.first(left)
                if rows.batch.num_rows:
                    yield self._table(rows, split, position)
                left -= rows.batch.num_rows
                position += rows.batch.num_rows

    def _table(self, rows: Rows, split: TableSplit, position: int) -> pa.Table:
        batch = rows.batch
        made = rows.made_ids
        if made is None:
            made = pa.array([f"{split.name}#{position + row}" for row in range(batch.num_rows)], pa.string())
        errors: list[RowError | None] = [rows.problem] * batch.num_rows
        columns = []
        for field in map(carried_field, self.columns):
            read, problems = _column(batch, field, split)
            column, is_bad = text_checked(read)
            columns.append(column)
            _note(errors, is_bad, f"column {field.name!r} holds text that is not UTF-8")
            _note(errors, problems, f"column {field.name!r} is {field.type} in other files, and this value cannot be")
        ids = made if self.id_column is None else self._ids(rows, split, made, errors)
        table = self.table([ids, *columns], errors)
        if rows.errors is None:
            return table
        found = pc.coalesce(rows.errors, table.column(-1).combine_chunks())
        return table.set_column(table.num_columns - 1, pa.field(READ_ERROR, ERROR_TYPE), found)

    def _ids(self, rows: Rows, split: TableSplit, made: pa.Array, errors: list[RowError | None]) -> pa.Array:
        """The id column's values; a text that is null is replaced by the made id, and is that row's error."""
        assert self.id_column is not None
        ids, _ = text_checked(_column(rows.batch, carried_field(self.id_field).with_name(self.id_column), split)[0])
        if not ids.null_count:
            return ids
        if not is_text(self.id_field.type):
            if rows.problem is not None:
                raise InputError(
                    f"{split.location}: {rows.problem.message}. Its column {self.id_column!r}, the input.id_column, is "
                    f"damaged too, and an id of type {self.id_field.type} cannot be made up: repair the file or take "
                    "it out of input.path, or name another column"
                )
            row = ids.is_null().index(True).as_py()
            raise null_id(split.location, self.id_column, f" in the row {made[row].as_py()!r}")
        problem = f"column {self.id_column!r}, the input.id_column, is null or not UTF-8"
        _note(errors, ids.is_null().to_pylist(), f"{problem}; the row is called by its position")
        return pc.coalesce(ids, made.cast(ids.type))


def find_columns(files: Iterable[tuple[str, pa.Schema]]) -> Found:
    """The columns of all files, given by name with their schemas, and of the `key=value` folders they lie in."""
    listed = list(files)
    columns, clashes = unify(listed)
    columns = pa.schema([*columns, *hive_columns((name for name, _ in listed), {*columns.names, *clashes})])
    return Found(columns, clashes=clashes, image_columns=image_features([schema for _, schema in listed]))


def null_id(location: Location, column: str, where: str) -> InputError:
    """An id that is missing and cannot be made, since ids are no texts."""
    return InputError(
        f"{location}: column {column!r}, the input.id_column, is null{where}. Fill it in, or name another column"
    )


def _column(batch: pa.RecordBatch, field: pa.Field, split: TableSplit) -> tuple[pa.Array, list[str | None]]:
    """A column of the batch in the field's type, null where this file has none; and what is wrong with which value."""
    try:
        if field.name in batch.schema.names:
            return cast_checked(batch.column(field.name), field.type)
        return repeated(split.constants.get(field.name), field, batch.num_rows), []
    except pa.ArrowException as error:
        raise InputError(f"{split.location}: column {field.name!r} is not {field.type}: {reason(error)}") from None


def _note(errors: list[RowError | None], problems: Sequence[str | bool | None], message: str) -> None:
    """Gives rows with a problem their error; a text says more than the message."""
    for row, problem in enumerate(problems):
        if problem:
            errors[row] = errors[row] or malformed(f"{message}: {problem}" if isinstance(problem, str) else message)
