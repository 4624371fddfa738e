"""What every reader provides: a `Source` of rows, cut into `Split`s that can be read anywhere.

A source is planned once, where the job starts, from headers and listings. It is small, picklable, and each of its
splits is one unit of reading. Rows come as tables of `row_id`, the user's columns, and the row's read error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import pyarrow as pa

from ray_job.arrow.column_types import carried_field
from ray_job.errors import ErrorCode, RowError, Stage
from ray_job.inputs.columns import Roles
from ray_job.inputs.files import InputFiles
from ray_job.inputs.skipped import Skipped
from ray_job.rows import ERROR_TYPE, READ_ERROR, ROW_ID, error_record, kept_names, travelling_name
from ray_job.spec import JobSpec, PromptSpec
from ray_job.storage.places import Location

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""Of columns of pictures that a reader makes, as Hugging Face's are."""


@dataclass(frozen=True, slots=True)
class Split:
    """One unit of reading: rows that lie together in one file (or listing)."""

    name: str  # of the file, relative to the input: what ids and messages show
    num_rows: int  # rows it delivers, always exactly
    num_bytes: int  # about how much memory they take

    def first(self, num_rows: int) -> Self:
        """The same split ending after its first rows."""
        return replace(self, num_rows=num_rows, num_bytes=self.num_bytes * num_rows // max(1, self.num_rows))


@dataclass(frozen=True, slots=True)
class FileSplit(Split):
    """Rows of one file whose size and time tell whether it is still the same one (`identity.py`)."""

    location: Location


@dataclass(frozen=True)
class Source(ABC):
    """The rows of a job's input.

    `columns` are the user's columns each table delivers beside `row_id`, with their own types: pictures, kept columns,
    and whatever the prompt needs. Tables carry them as `schema` says. `prompt` is the spec's with its defaults settled
    by the columns found; `overrides_column` is the column with a row's own generation parameters, if any.
    """

    id_field: pa.Field  # named row_id, with the type of the user's column
    columns: pa.Schema
    kept: tuple[pa.Field, ...]
    image_columns: tuple[str, ...]
    image_root: Location | None  # relative picture paths start here and may not leave; None: paths are refused
    prompt: PromptSpec
    overrides_column: str | None
    splits: tuple[Split, ...]
    skipped: Skipped  # files that lie among the input's and hold none of its rows
    taken: str = field(default="", kw_only=True)  # what holds the rows: `3 files of format csv`
    version: int | None = field(default=None, kw_only=True)  # of a table that has versions: the one that is read

    @classmethod
    def planned(
        cls, spec: JobSpec, found: InputFiles, columns: pa.Schema, roles: Roles, splits: Iterable[Split], **own: Any
    ) -> Self:
        """The source of the files found.

        Args:
            spec: may limit the rows.
            found: the files.
            columns: all that the data has.
            roles: what each is used for.
            splits: of all rows.
            own: the format's own fields.
        """
        return cls(
            id_field=pa.field(ROW_ID, pa.string() if roles.id is None else columns.field(roles.id).type),
            columns=roles.travelling(columns),
            kept=tuple(columns.field(name) for name in roles.kept),
            image_columns=roles.images,
            image_root=found.image_root(spec.input),
            prompt=roles.prompt,
            overrides_column=roles.overrides,
            splits=first_rows(splits, spec.input.limit),
            skipped=found.skipped,
            **own,
        )

    @abstractmethod
    def read(self, split: Split, max_rows: int) -> Iterator[pa.Table]:
        """The rows of a split, in order, as tables of `schema` with at most `max_rows` rows. Runs anywhere.

        Raises:
            InputError: the file cannot be read any more, or a row has no usable id.
        """

    @property
    def schema(self) -> pa.Schema:
        """Of tables: `row_id`, the user's columns, and READ_ERROR (null for a good row); see `column_types.py`.

        A user's column has its own name, except where it is one of ours (`rows.travelling_name`).
        """
        columns = (field.with_name(travelling_name(field.name)) for field in self.columns)
        users = (self.id_field, *columns)
        return pa.schema([*map(carried_field, users), pa.field(READ_ERROR, ERROR_TYPE)])

    @property
    def renamed(self) -> dict[str, str]:
        """Kept columns with a name that the output needs itself, and what it calls them instead."""
        names = kept_names(field.name for field in self.kept)
        return {name: other for name, other in names.items() if name != other}

    @property
    def num_rows(self) -> int:
        """Rows of all splits."""
        return sum(split.num_rows for split in self.splits)

    def without_splits(self) -> Self:
        """What a worker needs to read any split: small however many rows there are."""
        return replace(self, splits=())

    def table(self, columns: Sequence[Any], errors: Sequence[RowError | None] | None = None) -> pa.Table:
        """Columns in the order of `schema`, the errors last, as a table.

        Raises:
            pa.ArrowException: a value does not fit its column.
        """
        num_rows = len(columns[0])
        records = [None if error is None else error_record(error) for error in errors or [None] * num_rows]
        return pa.table([*columns, pa.array(records, ERROR_TYPE)], schema=self.schema)


def iter_tables(source: Source, max_rows: int = 1024) -> Iterator[pa.Table]:
    """All rows in order, in this process: for plans and previews."""
    for split in source.splits:
        yield from source.read(split, max_rows)


def first_rows(splits: Iterable[Split], limit: int | None) -> tuple[Split, ...]:
    """The splits, cut after the first `limit` rows; empty ones are left out."""
    chosen = []
    left = limit
    for split in splits:
        if left is not None:
            split = split.first(min(left, split.num_rows))
            left -= split.num_rows
        if split.num_rows:
            chosen.append(split)
    return tuple(chosen)


def malformed(message: str) -> RowError:
    """A row that cannot be read as one."""
    return RowError(ErrorCode.ROW_MALFORMED, message, Stage.READ)
