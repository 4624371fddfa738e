"""Metadata files of picture folders: `metadata.csv`, `.jsonl` or `.parquet`, as Hugging Face's ImageFolder has them.

A line names its picture in `file_name`, several in `file_names`; `left_file_name` and `right_file_names` make columns
`left` and `right`. Names are relative to the folder of their metadata file. Values of a CSV are texts, as
`csv_table.py` reads them.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_job.errors import InputError, RowError
from ray_job.inputs.files import InputFile
from ray_job.inputs.formats.text.compressed import DAMAGED
from ray_job.inputs.formats.text.csv_table import cast_texts, open_table, row_item, table_columns
from ray_job.inputs.formats.text.json_columns import KeyTypes, converter, parse_object
from ray_job.inputs.formats.text.record_splits import open_records
from ray_job.inputs.formats.text.records import Record, located
from ray_job.inputs.formats.text.text_files import look_into
from ray_job.inputs.source import malformed
from ray_job.prompts.conversation import nearest
from ray_job.prompts.json_text import parse_json
from ray_job.spec import InputSpec
from ray_job.storage.places import STORAGE_ERRORS, open_input, parse_uri, reason

FILE_NAME, FILE_NAMES = "file_name", "file_names"
_MAX_RECORD_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Metadata:
    """A metadata file's lines."""

    file: InputFile
    columns: pa.Table  # all it says
    names: frozenset[str]  # of the columns that name pictures
    pictures: dict[str, list[Any]]  # by the column they make: for each line a path, a list of paths, or None
    errors: list[RowError | None]  # what is wrong with which line


def read_metadata(file: InputFile, spec: InputSpec, known: Collection[str]) -> Metadata:
    """Reads a metadata file; a line that is broken has its error.

    Args:
        file: the metadata.
        spec: says how a CSV is to be read.
        known: paths of all pictures. Beside `file_name` a column such as `original_file_name` names pictures only if
            one of them is there.

    Raises:
        InputError: it cannot be read, its CSV header is broken, or nothing in it names pictures.
    """
    if file.name.endswith(".csv"):
        table, errors = _read_csv(file, spec)
    elif file.name.endswith(".parquet"):
        table, errors = _read_parquet(file)
    else:
        table, errors = _read_json(file, spec)
    paths = {name: _paths(table.column(name), file, known) for name in table.column_names if _target(name) is not None}
    if {FILE_NAME, FILE_NAMES} & paths.keys():
        paths = {name: values for name, values in paths.items() if _is_plain(name) or _are_there(values, known)}
    if not paths:
        hint = nearest(FILE_NAME, table.column_names)
        wrong = next((f"; {error.message}" for error in errors if error is not None), "")
        text = f"no column 'file_name' to say which picture a line is about; {hint}{wrong}"
        raise InputError(f"{file.location}: {text}. To read it as a table set input.format")
    pictures: dict[str, list[Any]] = {}
    for name, values in paths.items():
        target = _target(name) or name
        if target in pictures or target in table.column_names:
            text = f"column {target!r} of the metadata: rename it, the pictures of {name!r} make a column of this name"
            raise InputError(f"{file.location}: {text}")
        pictures[target] = values
    return Metadata(file, table, frozenset(paths), pictures, errors)


def check_one_each(files: Sequence[InputFile]) -> None:
    """At most one metadata file lies in a folder.

    Raises:
        InputError: naming the folder and its files.
    """
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for file in files:
        folders[posixpath.dirname(file.location.path)].append(posixpath.basename(file.name))
    for folder, names in folders.items():
        if len(names) > 1:
            raise InputError(f"{files[0].location.at(folder)}: {' and '.join(sorted(names))}; keep one metadata file")


def json_table(items: Sequence[Mapping[str, Any]], errors: list[RowError | None]) -> pa.Table:
    """Objects as columns; a value that cannot be one becomes its row's error, unless that has one."""
    learned = KeyTypes()
    for item in items:
        learned.add(item)
    columns: dict[str, pa.Array] = {}
    for name, type_ in learned.columns().items():
        # Lists of pictures' names are JSON text like all else that is nested.
        convert = converter(type_)
        values: list[Any] = []
        for place, item in enumerate(items):
            try:
                values.append(convert(item.get(name)))
            except RowError as error:
                values.append(None)
                errors[place] = errors[place] or malformed(f"{name!r} {error.message}")
        columns[name] = pa.array(values, type_)
    return pa.table(columns)


def _read_csv(file: InputFile, spec: InputSpec) -> tuple[pa.Table, list[RowError | None]]:
    table = open_table(file, spec.model_copy(update={"column_names": None}), _MAX_RECORD_BYTES)
    own = {name: type_ for name, type_ in (spec.column_types or {}).items() if name in table.header}
    schema, clashes = table_columns([table], spec.model_copy(update={"column_types": own}))
    if clashes:
        raise InputError(f"{file.location}: {', '.join(map(repr, clashes))}: there are two columns of that name")
    rows = []
    errors: list[RowError | None] = []
    with open_records(table, _MAX_RECORD_BYTES) as records:
        for record in records:
            item, error = row_item(record, table) if record.content is not None else ({}, _unread(file, record))
            rows.append(item)
            errors.append(error and located(file.name, "line", record, error))
    columns = {}
    for field in schema:
        columns[field.name], problems = cast_texts(field, [row.get(field.name) for row in rows])
        for place, problem in enumerate(problems):
            errors[place] = errors[place] or (problem and malformed(f"{field.name!r} {problem.message}"))
    return pa.table(columns, schema=schema), errors


def _read_json(file: InputFile, spec: InputSpec) -> tuple[pa.Table, list[RowError | None]]:
    text = look_into(file, "lines", spec.encoding)
    items: list[Mapping[str, Any]] = []
    errors: list[RowError | None] = []
    with open_records(text, _MAX_RECORD_BYTES) as records:
        for record in records:
            try:
                if record.content is None:
                    raise _unread(file, record)
                items.append(parse_object(record.content))
                errors.append(None)
            except RowError as error:
                items.append({})
                errors.append(located(file.name, text.unit, record, error))
    return json_table(items, errors), errors


def _read_parquet(file: InputFile) -> tuple[pa.Table, list[RowError | None]]:
    try:
        with open_input(file.location) as handle:
            table = pq.read_table(handle)
        table.validate(full=True)  # its text may not be UTF-8
    except (*STORAGE_ERRORS, UnicodeDecodeError) as error:
        raise InputError(f"{file.location}: broken metadata: {reason(error)}. Repair the file") from None
    return table, [None] * table.num_rows


def _unread(file: InputFile, record: Record) -> RowError:
    """Why a record has no content. Where a file breaks, it does not say which pictures it leaves without their rows."""
    problem = record.problem or f"longer than {_MAX_RECORD_BYTES} bytes"
    if problem.startswith(DAMAGED):
        raise InputError(f"{file.location}: behind line {record.number - 1} {problem}")
    return malformed(problem)


def _target(name: str) -> str | None:
    """The column of pictures that a column of their names makes."""
    if name in (FILE_NAME, FILE_NAMES):
        return "image" if name == FILE_NAME else "images"
    return next((name[: -len(end) - 1] for end in (FILE_NAME, FILE_NAMES) if name.endswith(f"_{end}")), None) or None


def _is_plain(name: str) -> bool:
    return name in (FILE_NAME, FILE_NAMES)


def _are_there(values: Sequence[Any], known: Collection[str]) -> bool:
    return any(path in known for value in values for path in (value if isinstance(value, list) else [value]))


def _paths(column: pa.ChunkedArray, file: InputFile, known: Collection[str]) -> list[Any]:
    """Names of pictures as paths: a text, a list of texts, or a list as JSON; an empty one counts as none."""
    paths: list[Any] = []
    for value in column.to_pylist():
        if isinstance(value, str) and value.startswith("["):
            with contextlib.suppress(RowError):
                value = parse_json(value)
        if isinstance(value, list):
            paths.append([_path(name, file, known) for name in value] or None)
        else:
            paths.append(_path(value, file, known))
    return paths


def _path(name: Any, file: InputFile, known: Collection[str]) -> str | None:
    """A name relative to its metadata file as a path relative to the input."""
    if name is None or name == "":
        return None
    if not isinstance(name, str):
        raise InputError(f"{file.location}: the name of a picture is not text: {str(name)[:60]}")
    if parse_uri(name):
        return name
    path = posixpath.normpath(posixpath.join(posixpath.dirname(file.name), name))
    if path in known or "\\" not in name:
        return path
    return _path(name.replace("\\", "/"), file, known)  # as Windows writes it
