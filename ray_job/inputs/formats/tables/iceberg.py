"""Rows of Iceberg tables: metadata and manifests are read by `pyiceberg`, the data files by the reader of all Parquet
files.

`input.path` is the table's folder or one of its `*.metadata.json`. Of a folder the metadata that `version-hint.text`
names is taken, or the one with the highest number. `input.version` is a snapshot's id, or the name of a branch or tag.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
from ray_job.storage.object_store import storage_options
from ray_job.storage.places import Location, open_input, reason

_METADATA = re.compile(r"(?:.*/)?(?:v?(\d+)[^/]*)?\.metadata\.json|(?:.*/)?[^/]*\.metadata\.json")
_HINT = "version-hint.text"
_FIELD_ID = b"PARQUET:field_id"
_PROPERTIES = {  # pyiceberg's names of what `object_store` calls
    "aws_endpoint": "s3.endpoint",
    "aws_region": "s3.region",
    "aws_access_key_id": "s3.access-key-id",
    "aws_secret_access_key": "s3.secret-access-key",
    "aws_session_token": "s3.session-token",
    "aws_skip_signature": "s3.anonymous",
}


def open_iceberg(spec: JobSpec, found: InputFiles) -> DataFileSource:
    """Resolves the snapshot and plans its rows.

    Raises:
        InputError: `pyiceberg` is missing, the metadata cannot be read, there is no such snapshot, or rows are deleted
            by values.
        SpecError: the spec does not fit the columns.
    """
    table = _open_table(spec, found)
    snapshot = _snapshot(table, spec.input.version, found.root)
    try:
        is_newest = snapshot == getattr(table.current_snapshot(), "snapshot_id", None)
        scan = table.scan(snapshot_id=None if is_newest else snapshot)  # an older one is seen with its own columns
        schema = scan.projection()
        tasks = sorted(scan.plan_files(), key=lambda task: str(task.file.file_path))
        columns = schema.as_arrow()
        ids = _names_by_id(table)
        files = [_data_file(task, table, schema, found.root) for task in tasks]
    except InputError:
        raise
    except Exception as error:  # pyiceberg raises what its storage and its parsers do
        if "equality deletes" in str(error):
            raise InputError(
                f"{found.root}: rows are deleted by their values (equality deletes), which is not read. Compact the "
                "table, as with Spark's rewrite_data_files, or choose an older input.version"
            ) from None
        raise InputError(f"{found.root}: the table cannot be read: {reason(error)}") from None

    def names_in(held: pa.Schema) -> Names:
        return _names(held, columns, ids)

    return open_data_files(spec, found, columns, files, names_in, snapshot)


def _open_table(spec: JobSpec, found: InputFiles) -> Any:
    try:
        from pyiceberg.table import StaticTable
    except ImportError:
        raise InputError(
            f"{found.root} is an Iceberg table, and pyiceberg is missing: pip install 'ray_job[iceberg]'"
        ) from None
    (uri, *_) = spec.input.path
    metadata = _newest_metadata(found)
    if spec.input.storage_options and found.root.scheme != "s3":
        raise InputError(
            f"{found.root}: an Iceberg table takes storage_options on s3:// alone; leave them out, and set the "
            "environment"
        )
    options = storage_options(uri, found.root, spec.input.storage_options)
    try:
        properties = {_PROPERTIES[key]: value for key, value in options.items() if key in _PROPERTIES}
        return StaticTable.from_metadata(metadata.reference, properties)
    except Exception as error:  # as above
        raise InputError(f"{metadata}: cannot be opened: {without_parts_of(uri, reason(error))}") from None


def _newest_metadata(found: InputFiles) -> Location:
    """The metadata file that the hint names, or the one with the highest number."""
    files = {file.name: file for file in found.files if file.name.endswith(".metadata.json")}
    hint = next((file for file in found.files if posixpath.basename(file.name) == _HINT), None)
    if hint is not None:
        with open_input(hint.location) as handle:
            version = handle.read().decode(errors="replace").strip()
        folder = posixpath.dirname(hint.name)
        for name in (version, f"v{version}.metadata.json", f"{version}.metadata.json"):
            if posixpath.join(folder, name) in files:
                return files[posixpath.join(folder, name)].location
    numbers = {name: int(match[1] or -1) for name in files if (match := _METADATA.fullmatch(name))}
    newest = [name for name, number in numbers.items() if number == max(numbers.values())]
    if len(newest) != 1:
        listed = ", ".join(sorted(newest)[:3]) or "none"
        raise InputError(f"{found.root}: which metadata is the newest is not clear ({listed}); name it as input.path")
    return files[newest[0]].location


def _snapshot(table: Any, version: int | str | None, root: Location) -> int:
    """The id of the snapshot asked for."""
    if version is None:
        current = table.current_snapshot()
        if current is None:
            raise InputError(f"{root}: the table has no snapshot yet, so it has no rows")
        return int(current.snapshot_id)
    is_id = str(version).isdecimal()
    snapshot = table.snapshot_by_id(int(version)) if is_id else table.snapshot_by_name(str(version))
    if snapshot is None:
        refs = ", ".join([*table.metadata.refs, *(str(each.snapshot_id) for each in table.snapshots()[-5:])])
        raise InputError(f"{root}: input.version: no snapshot {version!r}; it has {refs}")
    return int(snapshot.snapshot_id)


def _data_file(task: Any, table: Any, schema: Any, root: Location) -> DataFile:
    from pyiceberg.manifest import FileFormat

    path = str(task.file.file_path)
    location = located(path, root)
    if task.file.file_format != FileFormat.PARQUET:
        raise InputError(f"{location}: data files in {task.file.file_format.value} are not read; only Parquet is")
    folder = str(table.location()).rstrip("/") + "/"
    name = path.removeprefix(folder) if path.startswith(folder) else path
    file = InputFile(location, name, task.file.file_size_in_bytes)
    return DataFile(file, _values(task.file, table, schema), _deleted(task, root))


def _deleted(task: Any, root: Location) -> Positions:
    """The rows that are deleted by position."""
    from pyiceberg.manifest import FileFormat
    from pyiceberg.table.deletion_vector import deletion_vectors_from_puffin_file
    from pyiceberg.table.puffin import PuffinFile

    path = str(task.file.file_path)
    found = [NO_POSITIONS]
    for delete in sorted(task.delete_files, key=lambda delete: str(delete.file_path)):
        with open_input(located(str(delete.file_path), root)) as handle:
            if delete.file_format == FileFormat.PARQUET:
                rows = pq.read_table(handle, columns=["file_path", "pos"], filters=[("file_path", "=", path)])
                found.append(rows.column("pos").to_numpy())
            elif delete.file_format == FileFormat.PUFFIN:
                vectors = deletion_vectors_from_puffin_file(PuffinFile(handle.read()))
                found += [each.to_vector().to_numpy() for each in vectors if each.referenced_data_file == path]
            else:
                raise InputError(f"{delete.file_path}: deletions in {delete.file_format.value} are not read")
    return np.unique(np.concatenate(found).astype(np.int64))


def _values(file: Any, table: Any, schema: Any) -> dict[str, str | None]:
    """Columns that a file may lack: those it is partitioned by have one value, others the one they were added with."""
    values = {each.name: str(each.initial_default) for each in schema.fields if each.initial_default is not None}
    spec = table.specs()[file.spec_id]
    for place, part in enumerate(spec.fields):
        name = schema.find_column_name(part.source_id)
        if str(part.transform) == "identity" and name is not None and file.partition[place] is not None:
            values[name] = str(file.partition[place])
    return dict(values)


def _names_by_id(table: Any) -> dict[str, int]:
    """For files without ids: which column a name means."""
    mapping = table.name_mapping()
    return {} if mapping is None else {name: field.field_id for field in mapping.root for name in field.names}


def _names(held: Iterable[pa.Field], columns: Iterable[pa.Field], mapped: Mapping[str, int]) -> Names:
    """What the table calls the fields of a file, by their ids; those it does not have any more are left out."""
    by_id = {_id(field): field for field in columns}
    numbers = {field.name: mapped.get(field.name) if _id(field) is None else _id(field) for field in held}
    found = {field.name: (field, by_id.get(numbers[field.name])) for field in held if numbers[field.name] is not None}
    return {
        name: (there.name, {**_dropped(here, there), **_names(_inner(here), _inner(there), {})})
        for name, (here, there) in found.items()
        if there is not None
    }


def _dropped(here: pa.Field, there: pa.Field) -> Names:
    """Fields within a field that the table does not have any more: under a name that no other field has."""
    known = {_id(field) for field in _inner(there)}
    return {field.name: (f"dropped {_id(field)}", {}) for field in _inner(here) if _id(field) not in {None, *known}}


def _id(field: pa.Field) -> int | None:
    number = (field.metadata or {}).get(_FIELD_ID)
    return None if number is None else int(number)


def _inner(field: pa.Field) -> list[pa.Field]:
    """The fields of structs within a field."""
    type_ = field.type
    if pa.types.is_struct(type_):
        return list(type_)
    if pa.types.is_map(type_):
        return _inner(type_.item_field)
    return _inner(type_.value_field) if hasattr(type_, "value_field") else []
