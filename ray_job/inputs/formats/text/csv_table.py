"""Rows of CSV and TSV files.

Each file's first row names its columns (or `input.column_names` does). Values are texts as they stand, so that `00123`
and twenty digits stay what they are; `input.column_types` says otherwise for a column. Files may lack columns that
others have. A row with more or fewer fields than its file has columns is its own error.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_job.errors import InputError, RowError, SpecError
from ray_job.inputs.columns import Found, Roles, choose_roles
from ray_job.inputs.files import InputFile, InputFiles
from ray_job.inputs.formats.tables.schemas import cast_checked, hive_columns, is_text
from ray_job.inputs.formats.text.column_types import parse_type
from ray_job.inputs.formats.text.csv_rows import split_fields
from ray_job.inputs.formats.text.record_source import RecordSource, max_record_bytes
from ray_job.inputs.formats.text.record_splits import open_records, scan_all
from ray_job.inputs.formats.text.records import Record, located, text_of
from ray_job.inputs.formats.text.text_files import TextFile, look_into
from ray_job.inputs.source import malformed
from ray_job.prompts.conversation import nearest
from ray_job.redaction.logs import logger_of
from ray_job.spec import InputSpec, JobSpec

DELIMITERS = ",;\t|"
_ANY_DATE = "1970-01-01 "
_EXCEL = re.compile(rb"sep=([,;\t|])")  # a first line that is no header
_THREADS = 16
_LOG = logger_of(__name__)


@dataclass(frozen=True)
class CsvSource(RecordSource):
    """Rows of CSV files."""

    def item(self, record: Record, file: TextFile) -> tuple[Mapping[str, Any], RowError | None]:
        """The row's fields by column."""
        return row_item(record, file)

    def column(self, field: pa.Field, values: Sequence[Any]) -> tuple[pa.Array, list[RowError | None]]:
        """Texts, cast where the column has another type."""
        return cast_texts(field, values)

    def id(self, value: Any) -> Any:
        """A text, or what it spells."""
        if value is None or value == "":
            raise malformed("is empty")
        if is_text(self.id_field.type):
            return value
        return cast_texts(self.id_field, [value])[0][0].as_py()


def open_csv(spec: JobSpec, found: InputFiles) -> CsvSource:
    """Reads the files' headers, counts their rows and cuts them.

    Raises:
        InputError: a file cannot be read or has no header, or a row has no id of the id column's type.
        SpecError: the spec does not fit the columns.
    """
    max_bytes = max_record_bytes(spec.limits)
    with ThreadPoolExecutor(_THREADS) as pool:
        files = list(pool.map(partial(open_table, spec=spec.input, max_bytes=max_bytes), found.files))
    if not any(file.header for file in files):
        raise InputError(f"{files[0].location}: is empty; a CSV file begins with the names of its columns")
    columns, clashes = table_columns(files, spec.input)
    known = {*columns.names, *clashes, spec.input.id_column}
    partitions = hive_columns((file.name for file in files), known)
    columns = pa.schema([*columns, *partitions])
    roles = choose_roles(spec, Found(columns, clashes=clashes), "input")
    id_type = pa.string() if roles.id is None else columns.field(roles.id).type
    check = _IdCheck(roles, id_type)
    splits = scan_all(files, max_bytes, check, spec.input.limit)
    own = {"id_column": roles.id, "max_record_bytes": max_bytes, "partitions": partitions}
    return CsvSource.planned(spec, found, columns, roles, splits, **own)


def open_table(file: InputFile, spec: InputSpec, max_bytes: int) -> TextFile:
    """A CSV file with its delimiter and its columns; none where it is empty.

    Raises:
        InputError: it cannot be read, or its header cannot.
    """
    table = look_into(file, "table", spec.encoding)
    delimiter = spec.delimiter or ("\t" if file.kind == "tsv" else None)
    with open_records(table if delimiter is None else replace(table, delimiter=delimiter), max_bytes) as records:
        header = next(records, None)
        named = _EXCEL.fullmatch(header.content or b"") if header is not None else None
        if header is not None and named is not None:
            delimiter, first_row, header = delimiter or named[1].decode(), header.end, next(records, None)
            table = replace(table, first_row=first_row)
    if header is None:
        return replace(table, delimiter=delimiter or ",")
    try:
        if header.content is None:
            raise malformed(header.problem or "too long")
        text = text_of(header.content)
        if "\0" in text:
            raise malformed("it holds zero bytes; of UTF-16 without a byte order mark set input.encoding: utf-16-le")
        _check_is_table(text, file)
        delimiter = delimiter or max(DELIMITERS, key=text.count)
        if spec.column_names is not None:
            return replace(table, delimiter=delimiter, header=spec.column_names)
        names = tuple((name or "").strip() for name in split_fields(text, delimiter))
    except RowError as error:
        where = located(file.name, "line", header, error).message
        raise InputError(f"{file.location}: its header cannot be read: {where}") from None
    return replace(table, delimiter=delimiter, header=names, first_row=header.end)


def _check_is_table(text: str, file: InputFile) -> None:
    """Refuses a first line that something else begins with: its rows would be asked about nothing they hold."""
    start = text.lstrip()
    is_json = start.startswith(("{", "["))
    with contextlib.suppress(ValueError, RecursionError):
        _, end = json.JSONDecoder().raw_decode(start)
        is_json = is_json and start[end:].strip() in ("", ",")
    if is_json and start.lstrip("[{ \t\r")[:1] in ("", '"', "{", "}"):
        raise InputError(f"{file.location}: holds JSON, whatever its name says; set input.format: json, or move it")
    if start[:14].lower() in ("<!doctype html", "<html") or start[:5].lower() in ("<html", "<?xml"):
        raise InputError(f"{file.location}: holds a page of HTML or XML, not a table; the download probably failed")
    if start.startswith("version https://git-lfs"):
        raise InputError(
            f"{file.location}: holds a pointer of Git LFS, not the file itself; fetch it by `git lfs pull`"
        )
    if "\r" in text and '"' not in text.partition("\r")[0]:
        raise InputError(f"{file.location}: its lines end with \\r alone; save it with \\n, or \\r\\n, between them")


def table_columns(files: Sequence[TextFile], spec: InputSpec) -> tuple[pa.Schema, dict[str, str]]:
    """The columns of all files, and what is wrong with some of them.

    Raises:
        InputError: two files have no column in common.
        SpecError: `input.column_types` names a column that is not there, or no type.
    """
    clashes: dict[str, str] = {}
    names: dict[str, None] = {}
    for file in files:
        counts = Counter(file.header)
        clashes.update({name: f"there are two of that name in {file.name}" for name, n in counts.items() if n > 1})
        if "" in counts:
            _LOG.warning("%s: a column without a name is left out", file.name)
        if names and counts and not counts.keys() & names.keys():
            raise InputError(
                f"{files[0].name} and {file.name} have no column in common ({_listed(names)}; {_listed(counts)}): if "
                "the files have no line with the columns' names, set input.column_names"
            )
        names.update(dict.fromkeys(name for name in file.header if name))
    clashes.pop("", None)
    types, problems = {}, []
    for name, text in (spec.column_types or {}).items():
        if name not in names:
            problems.append(f"input.column_types: no column {name!r}; {nearest(name, list(names))}")
        else:
            types[name] = parse_type(text)
    if problems:
        raise SpecError(problems, "input")
    return pa.schema([(name, types.get(name, pa.string())) for name in names if name not in clashes]), clashes


def row_item(record: Record, file: TextFile) -> tuple[dict[str, str | None], RowError | None]:
    """A row's fields by column, and what is wrong with it."""
    try:
        fields = split_fields(text_of(record.content or b""), file.delimiter)
    except RowError as error:
        return {}, error
    item = dict(zip(file.header, fields, strict=False))
    if len(fields) != len(file.header):
        return item, malformed(f"has {len(fields)} fields, and the file {len(file.header)} columns")
    return item, None


def cast_texts(field: pa.Field, values: Sequence[Any]) -> tuple[pa.Array, list[RowError | None]]:
    """Texts as a column of the field's type, null where one spells no such value, and what is wrong then."""
    texts = pa.array(values, pa.string())
    if pa.types.is_time(field.type):  # Arrow reads a time only behind a date
        texts = pc.binary_join_element_wise(_ANY_DATE, texts, "")
        moments, problems = cast_checked(texts, pa.timestamp(field.type.unit))
        problems = [
            None if each is None else repr(value) for each, value in zip(problems, values, strict=bool(problems))
        ]
        column = moments.cast(field.type)
    else:
        column, problems = cast_checked(texts, field.type)
    return column, [None if each is None else malformed(f"is no {field.type}: {each}") for each in problems]


class _IdCheck:
    """Where ids are no texts each row must have one: none could be made up."""

    def __init__(self, roles: Roles, type_: pa.DataType) -> None:
        self._column = None if is_text(type_) else roles.id
        self._type = type_

    def __call__(self, file: TextFile, record: Record) -> None:
        if self._column is None:
            return
        item, _ = row_item(record, file)
        column, problems = cast_texts(pa.field(self._column, self._type), [item.get(self._column)])
        reason = next(
            (each.message for each in problems if each is not None), "is empty" if column.null_count else None
        )
        if reason is not None:
            raise InputError(
                f"{file.name}, line {record.number}: {self._column!r}, the row's id, {reason}. Repair the line, or "
                "leave the column out of input.column_types: a row whose text cannot be an id is called by its line"
            )


def _listed(names: Iterable[str]) -> str:
    listed = [repr(name) for name in names]
    return ", ".join(listed[:5]) + (", …" if len(listed) > 5 else "")
