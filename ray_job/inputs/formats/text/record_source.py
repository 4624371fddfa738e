"""Rows of text files, whatever form their records have: read split by split, each row with its id or its error.

A record that cannot be used is a row too: its id is `name#number` (of its first line, from 1 as editors count, or of
the item), and its error says what is wrong.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from ray_job.errors import RowError, Stage
from ray_job.inputs.formats.tables.schemas import hive_values, repeated
from ray_job.inputs.formats.text.record_splits import RecordSplit, changed, open_records
from ray_job.inputs.formats.text.records import Record, located
from ray_job.inputs.formats.text.text_files import TextFile
from ray_job.inputs.source import Source, Split, malformed
from ray_job.spec import LimitsSpec

TABLE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class RecordSource(Source):
    """Rows of text files."""

    id_column: str | None
    max_record_bytes: int
    partitions: pa.Schema  # columns that the `key=value` folders give, each with one value in a file

    @abstractmethod
    def item(self, record: Record, file: TextFile) -> tuple[Mapping[str, Any], RowError | None]:
        """A record's values by column, as far as it has any, and what is wrong with it."""

    @abstractmethod
    def column(self, field: pa.Field, values: Sequence[Any]) -> tuple[pa.Array, list[RowError | None]]:
        """Values of `item` as a column of the field's type, null where one does not fit, and what is wrong then."""

    @abstractmethod
    def id(self, value: Any) -> Any:
        """A value of `item` as the row's id. Raises RowError where it cannot be one."""

    def read(self, split: Split, max_rows: int) -> Iterator[pa.Table]:
        """See `Source.read`."""
        assert isinstance(split, RecordSplit)
        num_rows = 0
        with open_records(split.file, self.max_record_bytes, split) as records:
            wanted = islice(records, split.num_rows)
            while batch := _take(wanted, max_rows):
                yield self._table(batch, split.file)
                num_rows += len(batch)
        if num_rows != split.num_rows:
            raise changed(split)

    def _table(self, records: Sequence[Record], file: TextFile) -> pa.Table:
        items, errors = zip(*(self._item(record, file) for record in records), strict=True)
        problems: list[RowError | None] = list(errors)
        ids = []
        for place, (record, item) in enumerate(zip(records, items, strict=True)):
            made = f"{file.name}#{record.number}"
            try:
                ids.append(made if self.id_column is None else self.id(item.get(self.id_column)))
            except RowError as error:
                ids.append(made)
                text = f"{self.id_column!r}, the row's id, {error.message}"
                problems[place] = problems[place] or malformed(text)
        columns = [pa.array(ids, self.id_field.type)]
        constants = hive_values(file.name)
        for field in self.columns:
            if field.name in self.partitions.names:
                columns.append(repeated(constants.get(field.name), field, len(items)))
                continue
            column, wrong = self.column(field, [item.get(field.name) for item in items])
            columns.append(column)
            for place, problem in enumerate(wrong):
                if problem is not None:
                    text = f"{field.name!r} {problem.message}"
                    problems[place] = problems[place] or RowError(problem.code, text, Stage.READ)
        pairs = zip(records, problems, strict=True)
        return self.table(columns, [error and located(file.name, file.unit, record, error) for record, error in pairs])

    def _item(self, record: Record, file: TextFile) -> tuple[Mapping[str, Any], RowError | None]:
        """`item` of a record that was found whole."""
        if record.content is not None:
            return self.item(record, file)
        limit = f"longer than {self.max_record_bytes} bytes, 4 × limits.max_image_bytes"
        return {}, malformed(record.problem or limit)


def max_record_bytes(limits: LimitsSpec) -> int:
    """A record may hold a few pictures of the largest allowed size as base64."""
    return 4 * limits.max_image_bytes


def _take(records: Iterator[Record], max_rows: int) -> list[Record]:
    """The next records: as many as a table may have rows, or fewer where they are long."""
    taken: list[Record] = []
    num_bytes = 0
    for record in records:
        taken.append(record)
        num_bytes += record.end - record.start
        if len(taken) == max_rows or num_bytes >= TABLE_BYTES:
            break
    return taken
