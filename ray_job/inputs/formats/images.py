"""Rows of picture folders: one for each picture, with what metadata files say about it.

Only names are read here. A row is called by its picture's path relative to the input, or by the metadata's
`input.id_column`. A picture without a metadata line is a row with null in the metadata's columns; a line whose picture
does not exist is a row that fails later; a second line about one picture is a row called `path#1`, a third `path#2`;
a line without a file name is a row called `metadata file#position` (from 0). Files of other kinds, and hidden ones,
are counted in `num_ignored`.

The list of rows is held where the job starts: about 100 bytes a picture, and the metadata that is used.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ray_job.arrow.column_types import carried_field
from ray_job.errors import InputError
from ray_job.inputs.columns import Found, Roles, choose_roles
from ray_job.inputs.files import InputFile, InputFiles
from ray_job.inputs.formats.metadata import FILE_NAME, check_one_each, read_metadata
from ray_job.inputs.formats.schemas import is_text, unify
from ray_job.inputs.source import Source, Split, first_rows, malformed
from ray_job.rows import ERROR_TYPE, INTERNAL_PREFIX, READ_ERROR, ROW_ID, error_record, travelling_name
from ray_job.spec import JobSpec
from ray_job.storage.places import Location, parse_uri, reason

IMAGE = "image"
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SPLIT_ROWS = 1024
_THREADS = 8
_PATH = f"{INTERNAL_PREFIX}path"
_MADE_ID = f"{INTERNAL_PREFIX}made_id"


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
    root = found.image_root(spec.input)
    if root is None:
        raise InputError("input.path: no folder holds all these inputs; bring them together, or set input.image_root")
    metadata = [file for file in found.files if file.is_metadata]
    check_one_each(metadata)
    with ThreadPoolExecutor(_THREADS) as pool:
        tables = list(pool.map(read_metadata, metadata))
    columns, clashes = unify((file.name, table.schema) for file, table in zip(metadata, tables, strict=True))
    if IMAGE in columns.names:
        raise InputError(f"column {IMAGE!r} of the metadata: rename it, the column of pictures has this name")
    columns = pa.schema([pa.field(IMAGE, IMAGE_TYPE), *columns])
    roles = choose_roles(spec, Found(columns, image_columns=(IMAGE,), clashes=clashes, not_kept=(FILE_NAME,)), "input")
    listing = _listing(found.files, metadata, tables, columns, roles)
    # Paths start at the input's folder; from any other root they are given in full.
    rows = _delivered(listing, columns, roles, None if spec.input.image_root is None else found.root)
    splits = [_split(rows, start) for start in range(0, rows.num_rows, SPLIT_ROWS)]
    return ImagesSource(
        id_field=pa.field(ROW_ID, pa.string() if roles.id is None else columns.field(roles.id).type),
        columns=pa.schema([columns.field(name) for name in roles.delivered]),
        kept=tuple(columns.field(name) for name in roles.kept),
        image_columns=roles.images,
        image_root=root,
        prompt=roles.prompt,
        overrides_column=roles.overrides,
        splits=first_rows(splits, spec.input.limit),
        num_ignored=found.num_ignored,
    )


def _listing(
    files: Sequence[InputFile],
    metadata: Sequence[InputFile],
    tables: Sequence[pa.Table],
    columns: pa.Schema,
    roles: Roles,
) -> pa.Table:
    """Every row, sorted by its picture's path: path, made id, and the metadata's columns that are used."""
    names = [name for name in columns.names if name in (*roles.delivered, roles.id) and name != IMAGE]
    used = [carried_field(columns.field(name)) for name in names]
    schema = pa.schema([pa.field(_PATH, pa.string()), pa.field(_MADE_ID, pa.string()), *used])
    seen: Counter[str] = Counter()
    parts = []
    for file, table in zip(metadata, tables, strict=True):
        paths = _paths(file, table)
        arrays = {_PATH: pa.array(paths, pa.string()), _MADE_ID: pa.array(_made_ids(file, paths, seen), pa.string())}
        try:
            parts.append(_as(schema, arrays, table))
        except pa.ArrowException as error:
            raise InputError(
                f"{file.location}: a value does not fit its column's type in other metadata files: {reason(error)}. "
                "Give the column one type in all of them"
            ) from None
    others = pa.array([file.name for file in files if not file.is_metadata and file.name not in seen], pa.string())
    parts.append(_as(schema, {_PATH: others, _MADE_ID: others}, None))
    # Stable, so lines about one picture keep their order; rows without a path come last.
    listing = pa.concat_tables(parts)
    return listing.take(pc.sort_indices(listing, sort_keys=[(_PATH, "ascending", "at_end")]))


def _paths(file: InputFile, table: pa.Table) -> list[str | None]:
    folder = posixpath.dirname(file.name)
    names = table.column(FILE_NAME).to_pylist()
    return [
        name if not name or parse_uri(name) else posixpath.normpath(posixpath.join(folder, name))
        for name in (name or None for name in names)
    ]


def _made_ids(file: InputFile, paths: Sequence[str | None], seen: Counter[str]) -> Iterator[str]:
    for position, path in enumerate(paths):
        if path is None:
            yield f"{file.name}#{position}"
        else:
            yield f"{path}#{seen[path]}" if seen[path] else path
            seen[path] += 1


def _as(schema: pa.Schema, arrays: dict[str, pa.Array], table: pa.Table | None) -> pa.Table:
    """Arrays and a metadata table's columns in one schema; null where there is no such column."""
    num_rows = len(arrays[_PATH])
    columns = []
    for field in schema:
        if field.name in arrays:
            columns.append(arrays[field.name])
        elif table is not None and field.name in table.schema.names:
            column = table.column(field.name)
            columns.append(column if column.type == field.type else column.cast(field.type))
        else:
            columns.append(pa.nulls(num_rows, field.type))
    return pa.table(columns, schema=schema)


def _delivered(listing: pa.Table, columns: pa.Schema, roles: Roles, start: Location | None) -> pa.Table:
    """The rows in the source's schema."""
    made = listing.column(_MADE_ID)
    ids, errors = made, pa.nulls(listing.num_rows, ERROR_TYPE)
    if roles.id is not None:
        ids = listing.column(roles.id)
        if ids.null_count:
            _check_made(roles.id, ids, listing)
            problem = f"column {roles.id!r}, the input.id_column, is null or absent; the row is called by its path"
            record = error_record(malformed(problem))
            errors = pa.array([record if is_null else None for is_null in ids.is_null().to_pylist()], ERROR_TYPE)
            ids = pc.coalesce(ids, made.cast(ids.type))
    names = listing.column(_PATH).to_pylist()
    paths = pa.array([_reference(start, name) if start and name else name for name in names], pa.string())
    pictures = pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), paths], fields=list(IMAGE_TYPE))
    delivered = {name: pictures if name == IMAGE else listing.column(name) for name in roles.delivered}
    fields = [carried_field(columns.field(name)).with_name(travelling_name(name)) for name in delivered]
    schema = pa.schema([pa.field(ROW_ID, ids.type), *fields, pa.field(READ_ERROR, ERROR_TYPE)])
    return pa.table([ids, *delivered.values(), errors], schema=schema)


def _check_made(column: str, ids: pa.ChunkedArray, listing: pa.Table) -> None:
    """A missing id can be made up only where ids are text."""
    if not is_text(ids.type):
        path = listing.column(_PATH).filter(ids.is_null())[0].as_py()
        raise InputError(
            f"column {column!r}, the input.id_column, is null or absent for picture {path!r}, and a {ids.type} cannot "
            "be made up: add it to the metadata, or leave input.id_column unset"
        )


def _reference(start: Location, name: str) -> str:
    return name if parse_uri(name) else start.at(posixpath.join(start.path, name)).reference


def _split(rows: pa.Table, start: int) -> ImagesSplit:
    # take copies; a slice would be pickled with all its neighbours.
    part = rows.take(pa.array(range(start, min(start + SPLIT_ROWS, rows.num_rows)), pa.int64())).combine_chunks()
    return ImagesSplit(str(part.column(ROW_ID)[0]), part.num_rows, part.nbytes, part)
