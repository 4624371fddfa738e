"""Rows of an output folder as cards, whatever state its run is in. Only what is shown is read: whole parts, a few."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_job.arrow.column_types import filtered, stored_field, taken, with_types
from ray_job.arrow.values import python_rows, python_values
from ray_job.errors import RayJobError, SpecError
from ray_job.inputs.opening import open_source
from ray_job.inputs.picking import pick_rows
from ray_job.inputs.source import Source
from ray_job.output.compaction import read_part
from ray_job.output.ledger import Ledger
from ray_job.output.manifest import MANIFEST, Manifest
from ray_job.output.parts import DATA, ERRORS
from ray_job.rows import ROW_ID
from ray_job.spec import JobSpec
from ray_job.stages.prepare import row_values
from ray_job.storage.places import Location, locate, parse_uri
from ray_job.views.gallery.cards import Card, CardMaker, make_card

_MAX_PARTS = 12
_NO_SECRETS = (
    "questions and pictures are missing: the input cannot be read from here. A manifest keeps no credentials and no "
    "options of URIs; give them by the environment, as AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, and make it again"
)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Record:
    """An output row that counts, and its row's number in the output."""

    position: int
    values: dict[str, Any]


class OutputGallery:
    """Cards of an output folder.

    `problems` says what could not be read, and so is missing from the cards: the input, or a damaged part.
    """

    def __init__(self, root: Location, manifest: Manifest, ledger: Ledger, side: int = 224) -> None:
        self.root = root
        self.manifest = manifest
        self.ledger = ledger
        self.problems: list[str] = []
        self._side = side

    @classmethod
    def open(cls, path: str) -> OutputGallery:
        """Reads the manifest and the parts' footers.

        Raises:
            SpecError: the folder is no job's output.
            RayJobError: the storage fails.
        """
        root = locate(path)
        return cls(root, Manifest.of_output(root), Ledger.scan(root))

    def sample(self, n: int) -> list[Card]:
        """About n cards from all over the output: mostly answers, up to a quarter errors."""
        errors = self.records(ERRORS, n // 4)
        return self.cards([*self.records(DATA, n - len(errors)), *errors])

    def find(self, row_ids: Sequence[Any]) -> list[Card]:
        """The cards of these ids, in their order; ids that are not there are left out. Reads every part's ids."""
        cards = self.cards(self._of_ids(row_ids))
        return sorted(cards, key=lambda card: row_ids.index(card.row_id))

    def records(self, folder: str, num_records: int, max_parts: int = _MAX_PARTS) -> list[Record]:
        """Records spread evenly over at most `max_parts` parts of `data` or `errors`, themselves spread evenly."""
        indices = [index for index, part in enumerate(self.ledger.parts) if part.folder == folder and part.num_rows]
        indices = spread(indices, min(max_parts, num_records))
        records: list[Record] = []
        for turn, index in enumerate(indices):
            share = -(-(num_records - len(records)) // (len(indices) - turn))
            records += self._of_part(index, share)
        return records

    def cards(self, records: Iterable[Record]) -> list[Card]:
        """Records with their questions and pictures, as far as the input tells."""
        records = list(records)
        rows = self._input_rows(records)
        return [self._card(record, rows.get(record.position)) for record in records]

    def _card(self, record: Record, row: dict[str, Any] | None) -> Card:
        if row is None or self._maker is None:
            return make_card(record.values, None)
        return self._maker.card(record.values, row)

    def _of_part(self, index: int, num_records: int) -> list[Record]:
        part, counts = self.ledger.parts[index], self.ledger.counts_of(index)
        places = spread([place for place, is_counted in enumerate(counts) if is_counted], num_records)
        try:
            rows = python_rows(taken(read_part(part), pa.array(places, pa.int64())))
        except RayJobError as error:  # damaged, or replaced by a run that comes to its end just now
            self.problems.append(str(error))
            return []
        return [Record(int(part.account.positions[place]), row) for place, row in zip(places, rows, strict=True)]

    def _of_ids(self, row_ids: Sequence[Any]) -> list[Record]:
        found = []
        for index, part in enumerate(self.ledger.parts):
            is_wanted = _is_among(read_part(part, [ROW_ID]).column(ROW_ID), row_ids) & self.ledger.counts_of(index)
            if is_wanted.any():
                rows = python_rows(filtered(read_part(part), pa.array(is_wanted)))
                found += [Record(int(p), row) for p, row in zip(part.account.positions[is_wanted], rows, strict=True)]
        return found

    def _input_rows(self, records: Sequence[Record]) -> dict[int, dict[str, Any]]:
        """By position, the input rows that still have the id their record has."""
        if self._source is None:
            return {}
        first = self.manifest.inputs[-1].first_position
        ids = {record.position: record.values[ROW_ID] for record in records if record.position >= first}
        numbers = sorted(position - first for position in ids)
        try:
            table = pick_rows(self._source, numbers)
        except RayJobError as error:
            self.problems.append(str(error))
            return {}
        as_written = with_types(table.select([ROW_ID]), pa.schema([stored_field(self._source.id_field)]))
        passwords = None if self._spec is None else self._spec.documents.password_column
        values = row_values(table, self._source, passwords)
        found = zip(numbers, python_values(as_written.column(ROW_ID)), values, strict=False)
        same = {number + first: row for number, row_id, row in found if row_id == ids[number + first]}
        if len(same) < len({record.position for record in records}):
            self.problems.append(
                "the input has changed since, or rows are of an earlier input: some have no picture here"
            )
        return same

    @cached_property
    def _spec(self) -> JobSpec | None:
        try:
            return JobSpec.from_dict(self.manifest.spec, MANIFEST)
        except SpecError as error:
            self.problems.append(str(error))
            return None

    @cached_property
    def _source(self) -> Source | None:
        if self._spec is None:
            return None
        try:
            return open_source(self._spec)
        except RayJobError as error:
            self.problems.append(str(error))
            if any(parse_uri(path) is not None for path in self._spec.input.path):
                self.problems.append(_NO_SECRETS)
            return None

    @cached_property
    def _maker(self) -> CardMaker | None:
        if self._spec is None or self._source is None:
            return None
        return CardMaker(self._spec, self._source, self._side)


def _is_among(ids: pa.ChunkedArray, row_ids: Sequence[Any]) -> npt.NDArray[np.bool_]:
    """Which ids are those asked for, given as Python values or as cards show them."""
    try:
        is_among = pc.is_in(ids, pa.array(row_ids, ids.type)).to_numpy()
    except Exception:  # Arrow cannot compare them, or one is of another type
        is_among = [value in row_ids for value in python_values(ids)]
    return np.asarray(is_among, dtype=np.bool_)


def spread(values: Sequence[_T], count: int) -> list[_T]:
    """At most `count` of the values, evenly from first to last."""
    if count >= len(values):
        return list(values)
    return [values[index * len(values) // count] for index in range(count)]
