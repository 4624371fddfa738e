"""Metadata files of picture folders: `metadata.csv`, `.jsonl` or `.parquet` with a `file_name` column.

As Hugging Face's ImageFolder has it, `file_name` is relative to the folder of its metadata file. CSV types are
Arrow's: whole numbers, numbers, booleans, dates, else text; an empty field is null, but an empty quoted text is not.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ray_job.errors import InputError, RowError
from ray_job.inputs.files import InputFile
from ray_job.inputs.formats.json_columns import KeyTypes, converter, parse_object
from ray_job.inputs.formats.lines import iter_lines
from ray_job.prompts.conversation import nearest
from ray_job.storage.places import STORAGE_ERRORS, open_input, reason

FILE_NAME = "file_name"
_MAX_LINE_BYTES = 16 * 2**20


def read_metadata(file: InputFile) -> pa.Table:
    """A metadata file as a table with `file_name` as text.

    Raises:
        InputError: it does not parse (the message says at which line), or has no `file_name`.
    """
    try:
        with open_input(file.location) as handle:
            table = _read(file, handle)
        table.validate(full=True)  # its text may not be UTF-8
    except (*STORAGE_ERRORS, UnicodeDecodeError) as error:
        raise InputError(f"{file.location}: broken metadata: {reason(error)}. Repair the file") from None
    names = table.schema.names
    if FILE_NAME not in names:
        hint = nearest(FILE_NAME, names)
        raise InputError(f"{file.location}: no column 'file_name' to say which picture a line is about; {hint}")
    try:
        return table.set_column(names.index(FILE_NAME), FILE_NAME, table.column(FILE_NAME).cast(pa.string()))
    except pa.ArrowException as error:
        raise InputError(f"{file.location}: 'file_name' is not text: {reason(error)}") from None


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


def _read(file: InputFile, handle: pa.NativeFile) -> pa.Table:
    if file.name.endswith(".csv"):
        # Lines may hold newlines in quotes; captions often do.
        parsing = pa.csv.ParseOptions(newlines_in_values=True)
        converting = pa.csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
        # Only a single thread knows the number of a broken row.
        reading = pa.csv.ReadOptions(use_threads=False)
        return pa.csv.read_csv(handle, read_options=reading, parse_options=parsing, convert_options=converting)
    if file.name.endswith(".parquet"):
        return pq.read_table(handle)
    return _read_jsonl(file, handle)


def _read_jsonl(file: InputFile, handle: pa.NativeFile) -> pa.Table:
    lines = list(iter_lines(handle, _MAX_LINE_BYTES))
    number, column = 0, ""
    try:
        objects = []
        for line in lines:
            number = line.number
            objects.append(parse_object(line.content or b""))
        learned = KeyTypes()
        for item in objects:
            learned.add(item)
        types = learned.columns()
        values: dict[str, list[Any]] = {}
        for column, type_ in types.items():
            convert = converter(type_)
            values[column] = []
            for line, item in zip(lines, objects, strict=True):
                number = line.number
                values[column].append(convert(item.get(column)))
    except RowError as error:
        where = f" column {column!r}" if column else ""
        raise InputError(f"{file.location}, line {number}{where}: {error.message}. Repair the file") from None
    return pa.table({name: pa.array(values[name], types[name]) for name in types})
