"""What lies beside a picture under its name: a text (`0001.txt`, its caption) and a JSON object (`0001.json`), as
img2dataset, Kohya and others write them.

The text becomes the column `caption`, each key of the object a column; an object's own `caption` comes first.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_job.errors import RowError
from ray_job.inputs.detection import encoding_of
from ray_job.inputs.files import InputFile
from ray_job.inputs.formats.folders.metadata import json_table
from ray_job.inputs.formats.text.json_columns import parse_object
from ray_job.inputs.source import malformed
from ray_job.storage.heads import read_head

CAPTION = "caption"
MAX_BYTES = 2**20
_THREADS = 16


@dataclass(frozen=True)
class Captions:
    """What lies beside pictures, a row for each picture that has something."""

    places: Mapping[str, int]  # row by the picture's name
    columns: pa.Table
    errors: Sequence[RowError | None]


def read_captions(files: Sequence[InputFile], encoding: str | None) -> Captions:
    """Reads the captions among a folder's files, side by side; one that cannot be used is its picture's error.

    Args:
        files: pictures, and what lies beside them.
        encoding: the spec's, for files without a byte order mark.

    Raises:
        InputError: the storage fails.
    """
    captions = [file for file in files if file.kind in ("text", "object") and not file.is_metadata]
    with ThreadPoolExecutor(_THREADS) as pool:
        read = list(pool.map(lambda file: _values(file, encoding), captions))
    by_stem: dict[str, dict[str, Any]] = {}
    problems: dict[str, RowError] = {}
    for file, values in zip(captions, read, strict=True):
        stem = posixpath.splitext(file.name)[0]
        if isinstance(values, RowError):
            problems.setdefault(stem, RowError(values.code, f"{file.name}: {values.message}", values.stage))
            values = {}
        known = by_stem.setdefault(stem, {})
        by_stem[stem] = {**values, **known} if file.kind == "text" else {**known, **values}
    stems = list(by_stem)
    errors = [problems.get(stem) for stem in stems]
    columns = json_table(list(by_stem.values()), errors)
    rows = {stem: row for row, stem in enumerate(stems)}
    pictures = {file.name: posixpath.splitext(file.name)[0] for file in files if file.kind == "images"}
    places = {name: rows[stem] for name, stem in pictures.items() if stem in rows}
    return Captions(places, columns, errors)


def _values(file: InputFile, encoding: str | None) -> dict[str, Any] | RowError:
    content = read_head(file.location, MAX_BYTES + 1)
    try:
        if len(content) > MAX_BYTES:
            raise malformed(f"longer than {MAX_BYTES} bytes")
        text = content.decode(encoding_of(content) or encoding or "utf-8").removeprefix("\ufeff")
        return {CAPTION: text.strip() or None} if file.kind == "text" else parse_object(text.encode())
    except UnicodeError as error:
        return malformed(f"{error}; set input.encoding")
    except RowError as error:
        return error
