"""Rows of Delta tables: the log is read by `deltalake`, the data files by the reader of all Parquet files."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from ray_job.errors import InputError
from ray_job.inputs.files import InputFile, InputFiles
from ray_job.inputs.formats.tables.data_files import (
    NO_POSITIONS,
    DataFile,
    DataFileSource,
    Names,
    Positions,
    located,
    open_data_files,
)
from ray_job.redaction.text import without_parts_of
from ray_job.spec import JobSpec
from ray_job.storage.object_store import library_uri, storage_options
from ray_job.storage.places import Location, parse_uri, reason

_PHYSICAL = "delta.columnMapping.physicalName"


def open_delta(spec: JobSpec, found: InputFiles) -> DataFileSource:
    """Resolves the version and plans its rows.

    Raises:
        InputError: `deltalake` is missing, the log cannot be read, or there is no such version.
        SpecError: the spec does not fit the columns.
    """
    table = _open_table(spec, found.root)
    try:
        schema = pa.schema(table.schema().to_arrow())
        names = _names(table.schema().fields)
        partitions = [name for name in schema.names if name in table.metadata().partition_columns]
        deleted = {row["filepath"]: _positions(row["selection_vector"]) for row in _rows(table.deletion_vectors())}
        added = _rows(table.get_add_actions())
    except Exception as error:  # deltalake raises what its storage and its parser do
        raise InputError(f"{found.root}: the Delta log cannot be read: {reason(error)}") from None
    added.sort(key=lambda add: (add["modification_time"], add["path"]))
    files = [
        DataFile(
            _data_file(found.root, add["path"], add["size_bytes"]),
            _values(add.get("partition") or {}, names, partitions),
            next((places for uri, places in deleted.items() if uri.endswith(f"/{add['path']}")), NO_POSITIONS),
        )
        for add in added
    ]
    if sum(len(file.deleted) > 0 for file in files) != sum(len(places) > 0 for places in deleted.values()):
        raise InputError(f"{found.root}: deleted rows are listed for a file that the table does not have")

    def names_in(held: pa.Schema) -> Names:
        return {name: names[name] for name in held.names if name in names}

    return open_data_files(spec, found, schema, files, names_in, table.version())


def _open_table(spec: JobSpec, root: Location) -> Any:
    try:
        from deltalake import DeltaTable
    except ImportError:
        raise InputError(f"{root} is a Delta table, and deltalake is missing: pip install 'ray_job[delta]'") from None
    (uri, *_) = spec.input.path
    version = spec.input.version
    options = storage_options(uri, root, spec.input.storage_options)
    try:
        table = DeltaTable(library_uri(root), storage_options=options or None)
        if version is not None:
            table.load_as_version(int(version) if str(version).isdecimal() else version)
    except Exception as error:  # as above
        asked = "" if version is None else f", version {version}"
        raise InputError(f"{root}{asked}: cannot be opened: {without_parts_of(uri, reason(error))}") from None
    return table


def _rows(reader: Any) -> list[dict[str, Any]]:
    """What `deltalake` gives as Arrow of its own, as Python."""
    rows: list[dict[str, Any]] = pa.table(reader).to_pylist()
    return rows


def _positions(is_kept: list[bool]) -> Positions:
    (places,) = np.nonzero(~np.array(is_kept, np.bool_))
    return places.astype(np.int64)


def _data_file(root: Location, path: str, num_bytes: int) -> InputFile:
    """A file of the log, whose paths are encoded as in URIs; one elsewhere is named whole."""
    if parse_uri(path) is not None:
        return InputFile(located(path, root), unquote(path), num_bytes)
    name = unquote(path)
    return InputFile(root.at(posixpath.join(root.path, name)), name, num_bytes)


def _values(partition: Mapping[str, Any], names: Names, partitions: list[str]) -> dict[str, str | None]:
    values = {
        names[name][0] if name in names else name: None if value is None else str(value)
        for name, value in partition.items()
    }
    return {name: values.get(name) for name in partitions}


def _names(fields: list[Any]) -> Names:
    """What the files call the fields of a schema, or those of structs within a type."""
    return {
        field.metadata.get(_PHYSICAL, field.name): (field.name, _names(list(_inner(field.type)))) for field in fields
    }


def _inner(type_: Any) -> Iterator[Any]:
    """The fields of structs within a type."""
    yield from getattr(type_, "fields", ())
    for part in ("element_type", "value_type"):
        if hasattr(type_, part):
            yield from _inner(getattr(type_, part))
