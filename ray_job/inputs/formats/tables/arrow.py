"""Rows of Arrow IPC files and streams, and of Feather files, which are Arrow IPC files since version 2.

Only the needed columns are decoded. A record batch is the least that can be read, so its writer decides how much is
held at once: all of one that is compressed or in a bucket; a local one that is not is mapped, and takes no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pyarrow as pa

from ray_job.errors import InputError
from ray_job.inputs.columns import choose_roles
from ray_job.inputs.files import InputFile, InputFiles
from ray_job.inputs.formats.tables.arrow_messages import ArrowLayout, BatchPlace, arrow_layout
from ray_job.inputs.formats.tables.damaged import PIECE_ROWS, Group, iter_rows
from ray_job.inputs.formats.tables.row_groups import iter_bounded
from ray_job.inputs.formats.tables.table_source import Rows, TableSource, TableSplit, find_columns
from ray_job.spec import JobSpec
from ray_job.storage.places import STORAGE_ERRORS, Location, open_input, reason

SPLIT_BYTES = 32 * 2**20
SPLIT_ROWS = 4096
_THREADS = 16


@dataclass(frozen=True, slots=True)
class ArrowSplit(TableSplit):
    """Neighbouring record batches of one file."""

    is_file: bool
    first_batch: int
    batch_rows: tuple[int, ...]  # of each batch
    offsets: tuple[int, ...]  # the same; empty for a stream that can only be read from its start


@dataclass(frozen=True)
class ArrowSource(TableSource):
    """Rows of Arrow files and streams."""

    def batches(self, split: TableSplit, names: Sequence[str], max_rows: int) -> Iterator[Rows]:
        """See `TableSource.batches`."""
        assert isinstance(split, ArrowSplit)
        try:
            with _open_arrow(split.location) as handle:
                schema = _opening(split.is_file)(handle).schema
                present = [name for name in names if name in schema.names]
                for group in _groups(handle, schema, split):
                    yield from iter_rows(group, present, self.id_column, max_rows)
        except (*STORAGE_ERRORS, ValueError) as error:
            raise InputError(
                f"{split.location}: cannot be opened: {reason(error)}. If the file is damaged, write it again or take "
                "it out of input.path; if the storage failed, run the job again"
            ) from None


def open_arrow(spec: JobSpec, found: InputFiles) -> ArrowSource:
    """Walks the headers and plans the splits.

    Raises:
        InputError: a file is broken, or ids are missing.
        SpecError: the spec does not fit the columns.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        headers = list(pool.map(_header, found.files))
    columns = find_columns((file.name, schema) for file, schema, _ in headers)
    roles = choose_roles(spec, columns, "input")
    splits = [split for file, _, layout in headers for split in _plan_splits(file, layout)]
    return ArrowSource.planned(spec, found, columns.columns, roles, splits, id_column=roles.id)


def _header(file: InputFile) -> tuple[InputFile, pa.Schema, ArrowLayout]:
    with open_input(file.location) as handle:
        layout = arrow_layout(file.location, handle)
        handle.seek(0)
        try:
            reader = _opening(layout.is_file)(handle)
            _ = reader.schema.names  # where a damaged name shows
        except (*STORAGE_ERRORS, ValueError) as error:
            raise InputError(f"{file.location}: its schema cannot be read: {reason(error)}. Write it again") from None
        if layout.is_file and reader.num_record_batches != len(layout.batches):
            raise InputError(
                f"{file.location}: its footer tells of {reader.num_record_batches} record batches, and it has "
                f"{len(layout.batches)}. Write it again or take it out of input.path"
            )
        return file, reader.schema, layout


def _plan_splits(file: InputFile, layout: ArrowLayout) -> Iterator[ArrowSplit]:
    """Neighbouring batches, together when they are small. Dictionaries of a stream stand before the batches in need."""
    is_one = layout.has_dictionaries and not layout.is_file
    first_row = first_batch = num_rows = num_bytes = 0
    places: list[BatchPlace] = []
    for place in layout.batches:
        is_full = num_bytes + place.num_bytes > SPLIT_BYTES or num_rows + place.num_rows > SPLIT_ROWS
        if places and is_full and not is_one:
            yield _split(file, layout, first_row, first_batch, places)
            first_row, first_batch = first_row + num_rows, first_batch + len(places)
            num_rows = num_bytes = 0
            places = []
        places.append(place)
        num_rows, num_bytes = num_rows + place.num_rows, num_bytes + place.num_bytes
    if places:
        yield _split(file, layout, first_row, first_batch, places)


def _split(
    file: InputFile, layout: ArrowLayout, first_row: int, first_batch: int, places: Sequence[BatchPlace]
) -> ArrowSplit:
    rows = tuple(place.num_rows for place in places)
    is_one = layout.has_dictionaries and not layout.is_file
    offsets = () if is_one else tuple(place.offset for place in places)
    num_bytes = sum(place.num_bytes for place in places)
    location, is_file = file.location, layout.is_file
    return ArrowSplit(file.name, sum(rows), num_bytes, location, first_row, is_file, first_batch, rows, offsets)


def _open_arrow(location: Location) -> Any:
    return pa.memory_map(location.path) if location.is_local else open_input(location)


def _opening(is_file: bool) -> Any:
    return pa.ipc.open_file if is_file else pa.ipc.open_stream


def _groups(handle: Any, schema: pa.Schema, split: ArrowSplit) -> Iterator[Group]:
    """The record batches; all as one where each builds on the dictionaries before it."""
    position = split.first_row
    readers = cache(lambda names: pa.ipc.open_file(handle, options=_only(schema, names)))
    if not split.offsets:
        read = partial(_sequence, handle, schema)
        yield Group(split, "its record batches", position, sum(split.batch_rows), read)
        return
    for place, (offset, num_rows) in enumerate(zip(split.offsets, split.batch_rows, strict=True)):
        number = split.first_batch + place
        read = partial(_of_file, readers, schema, number) if split.is_file else partial(_at, handle, schema, offset)
        yield Group(split, f"record batch {number}", position, num_rows, read)
        position += num_rows


def _of_file(
    readers: Callable[[tuple[str, ...]], Any], schema: pa.Schema, number: int, names: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    yield from _pieces(readers(tuple(names)).get_batch(number), schema, names)


def _at(handle: Any, schema: pa.Schema, offset: int, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    handle.seek(offset)
    yield from _pieces(pa.ipc.read_record_batch(pa.ipc.read_message(handle), schema), schema, names)


def _sequence(handle: Any, schema: pa.Schema, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    handle.seek(0)
    for batch in pa.ipc.open_stream(handle, options=_only(schema, names)):
        yield from _pieces(batch, schema, names)


def _only(schema: pa.Schema, names: Sequence[str]) -> pa.ipc.IpcReadOptions:
    return pa.ipc.IpcReadOptions(included_fields=[place for place, name in enumerate(schema.names) if name in names])


def _pieces(batch: pa.RecordBatch, schema: pa.Schema, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    batch = batch.select([name for name in schema.names if name in names])
    for column in batch.columns:
        _check(column)
    return iter_bounded(batch, PIECE_ROWS)


def _check(column: pa.Array) -> None:
    """Offsets of a damaged file may lead anywhere; text that is not UTF-8 is a row's error, later."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        for part in _parts(column):  # what it says of the first may hide what is wrong with others
            _check(part)


def _parts(column: pa.Array) -> list[pa.Array]:
    types = pa.types
    if types.is_dictionary(column.type):
        return [column.dictionary_decode()]  # where an index leads nowhere
    if types.is_struct(column.type):
        return [column.field(place) for place in range(column.type.num_fields)]
    if types.is_map(column.type):
        return [column.keys, column.items]
    return [column.values] if types.is_list(column.type) or types.is_large_list(column.type) else []
