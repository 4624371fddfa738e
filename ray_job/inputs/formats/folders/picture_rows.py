"""The rows of a picture folder: its listing joined with metadata, captions and the folders' names."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_job.arrow.column_types import carried_field
from ray_job.errors import InputError, RowError
from ray_job.inputs.formats.folders.captions import Captions
from ray_job.inputs.formats.folders.metadata import Metadata
from ray_job.inputs.formats.tables.schemas import unify
from ray_job.inputs.source import IMAGE_TYPE
from ray_job.rows import ERROR_TYPE, INTERNAL_PREFIX, error_record
from ray_job.storage.places import Location, parse_uri, reason

IMAGE, LABEL = "image", "label"
PATH = f"{INTERNAL_PREFIX}path"
MADE_ID = f"{INTERNAL_PREFIX}made_id"
ERROR = f"{INTERNAL_PREFIX}error"


@dataclass(frozen=True)
class PictureColumns:
    """The columns of a folder's rows."""

    pictures: Mapping[str, pa.DataType]  # by name, in order
    texts: pa.Schema  # all others
    clashes: Mapping[str, str]
    has_labels: bool  # LABEL is among the texts, and is the first folder of each path

    @property
    def schema(self) -> pa.Schema:
        """All of them."""
        return pa.schema([*self.pictures.items(), *self.texts])


def picture_columns(metadata: Sequence[Metadata], captions: Captions, names: Collection[str]) -> PictureColumns:
    """What columns there are; the metadata's come before captions' of the same name.

    Args:
        metadata: of all folders.
        captions: beside pictures.
        names: of all pictures.

    Raises:
        InputError: a column of the metadata has the name of one of pictures.
    """
    pictures: dict[str, pa.DataType] = {}
    for each in metadata:
        for target, values in each.pictures.items():
            is_list = any(isinstance(value, list) for value in values) or pictures.get(target) == pa.list_(IMAGE_TYPE)
            pictures[target] = pa.list_(IMAGE_TYPE) if is_list else IMAGE_TYPE
    pictures = pictures or {IMAGE: IMAGE_TYPE}
    texts, clashes = unify((each.file.name, each.columns.schema) for each in metadata)
    taken = {*texts.names, *clashes}
    for name in pictures:
        if name in taken:
            raise InputError(f"column {name!r} of the metadata: rename it, a column of pictures has this name")
    added = [field for field in captions.columns.schema if field.name not in {*taken, *pictures}]
    others = {*taken, *pictures, *captions.columns.column_names}
    has_labels = LABEL not in others and any("/" in name for name in names)
    if has_labels:
        added.append(pa.field(LABEL, pa.string()))
    return PictureColumns(pictures, pa.schema([*texts, *added]), clashes, has_labels)


def list_rows(
    names: Sequence[str],
    metadata: Sequence[Metadata],
    captions: Captions,
    columns: PictureColumns,
    used: Collection[str],
    start: Location | None,
) -> pa.Table:
    """Every row, sorted by its first picture's path: PATH, MADE_ID, ERROR, and the columns that are used.

    Args:
        names: of all pictures.
        metadata: of all folders.
        captions: beside pictures.
        columns: as `picture_columns` says.
        used: names of the columns wanted.
        start: paths are given in full from here; None: as they are named.

    Raises:
        InputError: a value does not fit the type that its column has in other metadata.
    """
    told, seen = set[str](), Counter[str]()
    parts = []
    for each in metadata:
        firsts = [_first(values) for values in zip(*each.pictures.values(), strict=True)]
        told.update(path for values in each.pictures.values() for value in values for path in _listed(value))
        single = each.pictures.get(IMAGE, [None] * len(firsts))
        made = list(_made_ids(each.file.name, [None if isinstance(path, list) else path for path in single], seen))
        part = _Part(firsts, made, each.pictures, each.errors, each.columns, each.file.location)
        parts.append(part.table(columns, used, captions, start))
    others = [name for name in names if name not in told]
    rest = {next(iter(columns.pictures)): others}
    parts.append(_Part(others, others, rest, [None] * len(others), None, None).table(columns, used, captions, start))
    # Stable, so lines about one picture keep their order; rows without a path come last.
    listing = pa.concat_tables(parts)
    return listing.take(pc.sort_indices(listing, sort_keys=[(PATH, "ascending", "at_end")]))


@dataclass(frozen=True)
class _Part:
    """Rows of one metadata file, or those that no metadata is about."""

    firsts: Sequence[str | None]  # path of each row's first picture
    made_ids: Sequence[str]
    pictures: Mapping[str, Sequence[Any]]
    errors: Sequence[RowError | None]
    texts: pa.Table | None
    location: Location | None

    def table(
        self, columns: PictureColumns, used: Collection[str], captions: Captions, start: Location | None
    ) -> pa.Table:
        num_rows = len(self.firsts)
        rows = [captions.places.get(path or "") for path in self.firsts]
        beside = pa.array(rows, pa.int64())
        wrong = [None if row is None else captions.errors[row] for row in rows]
        errors = [
            error_record(each) if (each := own or other) else None
            for own, other in zip(self.errors, wrong, strict=True)
        ]
        arrays = [
            pa.array(self.firsts, pa.string()),
            pa.array(self.made_ids, pa.string()),
            pa.array(errors, ERROR_TYPE),
        ]
        fields = [pa.field(PATH, pa.string()), pa.field(MADE_ID, pa.string()), pa.field(ERROR, ERROR_TYPE)]
        for field in map(carried_field, columns.schema):
            if field.name not in used:
                continue
            fields.append(field)
            if field.name in columns.pictures:
                arrays.append(_pictures(self.pictures.get(field.name) or [None] * num_rows, field.type, start))
            elif self.texts is not None and field.name in self.texts.column_names:
                arrays.append(self._cast(self.texts.column(field.name), field.type))
            elif field.name in captions.columns.column_names:
                arrays.append(self._cast(captions.columns.column(field.name).take(beside), field.type))
            elif field.name == LABEL and columns.has_labels:
                arrays.append(pa.array(map(_label, self.firsts), pa.string()))
            else:
                arrays.append(pa.nulls(num_rows, field.type))
        return pa.table(arrays, schema=pa.schema(fields))

    def _cast(self, column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
        try:
            return column if column.type == type_ else column.cast(type_)
        except pa.ArrowException as error:
            raise InputError(
                f"{self.location}: a value does not fit its column's type in other metadata files: {reason(error)}. "
                "Give the column one type in all of them"
            ) from None


def _listed(value: Any) -> list[str]:
    return [name for name in (value if isinstance(value, list) else [value]) if name is not None]


def _first(values: Sequence[Any]) -> str | None:
    return next((path for value in values for path in _listed(value)), None)


def _made_ids(file: str, paths: Sequence[str | None], seen: Counter[str]) -> Iterator[str]:
    for position, path in enumerate(paths):
        if path is None:
            yield f"{file}#{position}"
        else:
            yield f"{path}#{seen[path]}" if seen[path] else path
            seen[path] += 1


def _pictures(values: Sequence[Any], type_: pa.DataType, start: Location | None) -> pa.Array:
    """Paths as pictures, or as lists of them."""
    if type_ != IMAGE_TYPE:
        lists = [None if value is None else [_reference(start, path) for path in _listed(value)] for value in values]
        shown = [None if paths is None else [{"bytes": None, "path": path} for path in paths] for paths in lists]
        return pa.array(shown, type_)
    paths = pa.array([_reference(start, path) for path in values], pa.string())
    parts = [pa.nulls(len(paths), pa.binary()), paths]
    return pa.StructArray.from_arrays(parts, fields=list(IMAGE_TYPE), mask=paths.is_null())


def _reference(start: Location | None, path: str | None) -> str | None:
    if start is None or path is None or parse_uri(path):
        return path
    return start.at(posixpath.join(start.path, path)).reference


def _label(path: str | None) -> str | None:
    """The first folder of a path below the input."""
    if path is None or parse_uri(path) or "/" not in path.lstrip("/") or path.startswith(("/", "..")):
        return None
    return path.partition("/")[0]
