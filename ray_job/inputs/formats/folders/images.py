"""Rows of picture folders: one for each picture, with what metadata files and captions beside it say about it.

Only names are read here. A row is called by its picture's path relative to the input, or by the metadata's
`input.id_column`. A picture without a metadata line is a row with null in the metadata's columns; a line whose picture
does not exist is a row that fails later; a second line about one picture is a row called `path#1`, a third `path#2`;
a line about several pictures, or without a name, is a row called `metadata file#position` (from 0). The first folder
of a path is the column `label`.

The list of rows is held where the job starts: about 100 bytes a picture, and the metadata that is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ray_job.errors import InputError, SpecError
from ray_job.inputs.columns import Found, Roles, choose_roles
from ray_job.inputs.files import InputFiles
from ray_job.inputs.formats.folders.captions import read_captions
from ray_job.inputs.formats.folders.metadata import check_one_each, read_metadata
from ray_job.inputs.formats.folders.picture_rows import ERROR, MADE_ID, PATH, PictureColumns, list_rows, picture_columns
from ray_job.inputs.formats.tables.schemas import is_text
from ray_job.inputs.source import Source, Split, malformed
from ray_job.prompts.conversation import nearest
from ray_job.rows import ERROR_TYPE, READ_ERROR, ROW_ID, error_record, travelling_name
from ray_job.spec import InputSpec, JobSpec

SPLIT_ROWS = 1024
_THREADS = 8


@dataclass(frozen=True, slots=True)
class ImagesSplit(Split):
    """Rows beside each other in the sorted list, as they are delivered."""

    rows: pa.Table


@dataclass(frozen=True)
class ImagesSource(Source):
    """Rows of picture folders."""

    def read(self, split: Split, max_rows: int) -> Iterator[pa.Table]:
        """See `Source.read`."""
        assert isinstance(split, ImagesSplit)
        for start in range(0, split.num_rows, max_rows):
            yield split.rows.slice(start, min(max_rows, split.num_rows - start))


def open_images(spec: JobSpec, found: InputFiles) -> ImagesSource:
    """Joins the listing with the metadata and plans the splits.

    Raises:
        InputError: metadata is broken, an id cannot be made, or no folder holds all inputs.
        SpecError: the spec does not fit the columns.
    """
    found.check_image_root(spec.input)
    files = [file for file in found.files if file.is_metadata]
    check_one_each(files)
    names = [file.name for file in found.files if not file.is_metadata and file.kind not in ("text", "object")]
    known = frozenset(names)
    with ThreadPoolExecutor(_THREADS) as pool:
        metadata = list(pool.map(lambda file: read_metadata(file, spec.input, known), files))
    captions = read_captions(found.files, spec.input.encoding)
    columns = picture_columns(metadata, captions, names)
    _check_types(spec.input, columns)
    shown, not_kept = tuple(columns.pictures), frozenset().union(*(each.names for each in metadata))
    data = Found(columns.schema, image_columns=shown, clashes=columns.clashes, not_kept=not_kept)
    roles = choose_roles(spec, data, "input")
    # Paths start at the input's folder; from any other root they are given in full.
    start = None if spec.input.image_root is None else found.root
    listing = list_rows(names, metadata, captions, columns, [*roles.delivered, roles.id or ""], start)
    rows = _delivered(listing, roles, roles.travelling(columns.schema))
    splits = [_split(rows, start) for start in range(0, rows.num_rows, SPLIT_ROWS)]
    return ImagesSource.planned(spec, found, columns.schema, roles, splits)


def _check_types(spec: InputSpec, columns: PictureColumns) -> None:
    """Types are named for columns that some metadata has."""
    names = columns.texts.names
    problems = [
        f"input.column_types: no column {name!r}; {nearest(name, names)}"
        for name in spec.column_types or ()
        if name not in names and name not in columns.clashes
    ]
    if problems:
        raise SpecError(problems, "input")


def _delivered(listing: pa.Table, roles: Roles, travelling: pa.Schema) -> pa.Table:
    """The rows in the source's schema."""
    made = listing.column(MADE_ID)
    ids, errors = made, listing.column(ERROR).combine_chunks()
    if roles.id is not None:
        ids = listing.column(roles.id)
        if ids.null_count:
            _check_made(roles.id, ids, listing)
            problem = f"column {roles.id!r}, the input.id_column, is null or absent; the row is called by its path"
            record = error_record(malformed(problem))
            pairs = zip(ids.is_null().to_pylist(), errors.to_pylist(), strict=True)
            errors = pa.array([error or (record if is_null else None) for is_null, error in pairs], ERROR_TYPE)
            ids = pc.coalesce(ids, made.cast(ids.type))
    columns = [listing.column(field.name).cast(field.type) for field in travelling]
    fields = [field.with_name(travelling_name(field.name)) for field in travelling]
    schema = pa.schema([pa.field(ROW_ID, ids.type), *fields, pa.field(READ_ERROR, ERROR_TYPE)])
    return pa.table([ids, *columns, errors], schema=schema)


def _check_made(column: str, ids: pa.ChunkedArray, listing: pa.Table) -> None:
    """A missing id can be made up only where ids are text."""
    if not is_text(ids.type):
        path = listing.column(PATH).filter(ids.is_null())[0].as_py()
        raise InputError(
            f"column {column!r}, the input.id_column, is null or absent for picture {path!r}, and a {ids.type} cannot "
            "be made up: add it to the metadata, or leave input.id_column unset"
        )


def _split(rows: pa.Table, start: int) -> ImagesSplit:
    # take copies; a slice would be pickled with all its neighbours.
    part = rows.take(pa.array(range(start, min(start + SPLIT_ROWS, rows.num_rows)), pa.int64())).combine_chunks()
    return ImagesSplit(str(part.column(ROW_ID)[0]), part.num_rows, part.nbytes, part)
