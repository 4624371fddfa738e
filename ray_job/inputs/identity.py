"""Whether an input is the one of an earlier run: then its rows have the same numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ray_job.arrow.values import python_values
from ray_job.errors import InputError
from ray_job.inputs.documents.source import DocumentsSplit
from ray_job.inputs.formats.folders.images import ImagesSource
from ray_job.inputs.source import FileSplit, Source
from ray_job.inputs.video.source import VideoSplit
from ray_job.storage.places import STORAGE_ERRORS, Location, reason


def input_identity(source: Source) -> str:
    """Hash of everything that decides the rows' numbers: 16 hex digits.

    Of picture folders that is the list of ids; of files, their names, sizes, times and rows, which takes one look at
    each file's entry; of tables that have versions, the version too. Not the files' content: a file copied elsewhere
    counts as another (its rows are then found by their ids), one rewritten with the same size within its clock's tick
    does not.
    """
    hasher = hashlib.sha256()
    if isinstance(source, ImagesSource):
        for split in source.splits:
            for table in source.read(split, split.num_rows):
                hasher.update("\0".join(map(str, python_values(table.column(0)))).encode(errors="surrogatepass"))
        return hasher.hexdigest()[:16]
    if source.version is not None:
        hasher.update(f"version {source.version}\n".encode())
    locations = [split.location for split in source.splits if isinstance(split, FileSplit)]
    pieces = [piece for split in source.splits if isinstance(split, DocumentsSplit) for piece in split.pieces]
    named = [f"{piece.document.name}\0{piece.document.pages}" for piece in pieces]
    named += [f"{split.name}\0{split.num_rows}" for split in source.splits]
    clips = [piece for split in source.splits if isinstance(split, VideoSplit) for piece in split.pieces]
    named += [f"{piece.video.name}\0{piece.times_us}\0{piece.end_us}" for piece in clips]
    locations += [*(piece.document.location for piece in pieces), *(piece.video.location for piece in clips)]
    for line in (*_entries(locations), *named):
        hasher.update(line.encode(errors="surrogatepass") + b"\n")
    return hasher.hexdigest()[:16]


def _entries(locations: Iterable[Location]) -> list[str]:
    """Size and time of each file, once."""
    distinct = {location.path: location for location in locations}
    if not distinct:
        return []
    filesystem = next(iter(distinct.values())).filesystem
    try:
        infos = filesystem.get_file_info(list(distinct))
    except STORAGE_ERRORS as error:
        raise InputError(f"{next(iter(distinct.values()))}: {reason(error)}") from None
    return [f"{info.size}\0{info.mtime_ns}" for info in infos]
