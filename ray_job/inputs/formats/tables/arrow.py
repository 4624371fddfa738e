"""Rows of Arrow IPC files and streams, and of Feather files, which are Arrow IPC files since version 2.

Only the needed columns are decoded. A record batch is the least that can be read, so its writer decides how much is
held at once: all of one that is compressed or in a bucket; a local one that is not is mapped, and takes no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_job.errors import InputError
from ray_job.inputs.columns import choose_roles
from ray_job.inputs.files import InputFile, InputFiles
from ray_job.inputs.formats.tables.arrow_messages import ArrowLayout, arrow_layout
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
    offsets: tuple[int, ...]  # of each batch; empty for a stream that can only be read from its start


@dataclass(frozen=True)
class ArrowSource(TableSource):
    """Rows of Arrow files and streams."""

    def batches(self, split: TableSplit, names: Sequence[str], max_rows: int) -> Iterator[Rows]:
        """See `TableSource.batches`."""
        assert isinstance(split, ArrowSplit)
        try:
            with _open_arrow(split.location) as handle:
                for batch in _whole_batches(handle, split, names):
                    for column in batch.columns:
                        _check(column)
                    yield from map(Rows, iter_bounded(batch, max_rows))
        except (*STORAGE_ERRORS, ValueError) as error:
            raise InputError(
                f"{split.location}: a batch cannot be read: {reason(error)}. If the file is damaged, write it again or "
                "take it out of input.path; if the storage failed, run the job again"
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
            opening = pa.ipc.open_file if layout.is_file else pa.ipc.open_stream
            return file, opening(handle).schema, layout
        except (*STORAGE_ERRORS, ValueError) as error:
            raise InputError(f"{file.location}: its schema cannot be read: {reason(error)}. Write it again") from None


def _plan_splits(file: InputFile, layout: ArrowLayout) -> Iterator[ArrowSplit]:
    """Neighbouring batches, together when they are small. Dictionaries of a stream stand before the batches in need."""
    is_one = layout.has_dictionaries and not layout.is_file
    first_row = first_batch = num_rows = num_bytes = 0
    offsets: list[int] = []
    for place in layout.batches:
        is_full = num_bytes + place.num_bytes > SPLIT_BYTES or num_rows + place.num_rows > SPLIT_ROWS
        if offsets and is_full and not is_one:
            yield _split(file, layout, first_row, num_rows, num_bytes, first_batch, offsets)
            first_row, first_batch = first_row + num_rows, first_batch + len(offsets)
            num_rows = num_bytes = 0
            offsets = []
        offsets.append(place.offset)
        num_rows, num_bytes = num_rows + place.num_rows, num_bytes + place.num_bytes
    if offsets:
        yield _split(file, layout, first_row, num_rows, num_bytes, first_batch, [] if is_one else offsets)


def _split(
    file: InputFile,
    layout: ArrowLayout,
    first_row: int,
    num_rows: int,
    num_bytes: int,
    first_batch: int,
    offsets: Iterable[int],
) -> ArrowSplit:
    places = tuple(offsets)
    return ArrowSplit(file.name, num_rows, num_bytes, file.location, first_row, layout.is_file, first_batch, places)


def _open_arrow(location: Location) -> Any:
    return pa.memory_map(location.path) if location.is_local else open_input(location)


def _whole_batches(handle: Any, split: ArrowSplit, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    opening = pa.ipc.open_file if split.is_file else pa.ipc.open_stream
    schema = opening(handle).schema
    included = [place for place, name in enumerate(schema.names) if name in names]
    handle.seek(0)
    if split.is_file:
        reader = opening(handle, options=pa.ipc.IpcReadOptions(included_fields=included))
        for number in range(split.first_batch, split.first_batch + len(split.offsets)):
            yield reader.get_batch(number).select([schema.names[place] for place in included])
    elif not split.offsets:
        yield from opening(handle, options=pa.ipc.IpcReadOptions(included_fields=included))
    else:
        for offset in split.offsets:
            handle.seek(offset)
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(handle), schema)
            yield batch.select([schema.names[place] for place in included])


def _check(column: pa.Array) -> None:
    """Offsets of a damaged file may lead anywhere; text that is not UTF-8 is a row's error, later."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
