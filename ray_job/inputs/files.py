"""Which files make up the input, their format, and the name of each.

A file's name is its path relative to the input's folder (of the file itself for one file; of the fixed part of a
glob; of the nearest folder that holds all inputs when there are several). Row ids are made from names, so a
name depends only on the input's own layout: not on the machine, the order of the files, or where the folder is.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ray_job.errors import InputError
from ray_job.inputs.table_folders import find_table
from ray_job.redaction.text import public_uri
from ray_job.spec import InputSpec
from ray_job.storage.places import Location, expand, locate

Format = Literal["parquet", "images", "jsonl", "arrow", "webdataset", "hf", "delta", "iceberg", "lance"]
_SUFFIXES: dict[str, tuple[str, ...]] = {
    "parquet": (".parquet", ".pq"),
    "jsonl": (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
    "arrow": (".arrow", ".feather", ".ipc"),
    "webdataset": (".tar", ".tar.gz", ".tgz"),
    "images": (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
}
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of the input."""

    location: Location
    name: str  # relative to the input
    num_bytes: int | None

    @property
    def is_metadata(self) -> bool:
        """Whether it describes the pictures of its folder."""
        return posixpath.basename(self.name) in METADATA_NAMES


@dataclass(frozen=True, slots=True)
class InputFiles:
    """The input's files of one format, in the order their rows come."""

    format: Format
    files: tuple[InputFile, ...]  # pictures come with the metadata files beside them
    root: Location  # the folder names are relative to
    num_ignored: int

    def image_root(self, spec: InputSpec) -> Location | None:
        """Where relative picture paths start: `input.image_root`, else the input's folder.

        None where only the top of the storage holds all inputs: every file would lie within that.
        """
        if spec.image_root is not None:
            return locate(spec.image_root)
        return self.root if self.root.path.strip("/") else None


def find_files(spec: InputSpec) -> InputFiles:
    """Lists the input, decides its format and names its files. A file that several paths match is read once.

    Raises:
        InputError: nothing there, formats mixed or unknown, or inputs on different storages.
    """
    located = [locate(path) for path in spec.path]
    expanded = [expand(location) for location in located]
    root = _common_folder([folder for folder, _ in expanded])
    prefix = len(root.path.rstrip("/")) + 1 if root.path else 0
    found: dict[str, InputFile] = {}
    for _, infos in expanded:
        for info in infos:
            found.setdefault(info.path, InputFile(root.at(info.path), info.path[prefix:].lstrip("/"), info.size))
    table = find_table(spec, {file.name: file for file in found.values()}, root)
    if table is not None:
        return InputFiles(table, tuple(found.values()), root, 0)
    where = ", ".join(map(public_uri, spec.path[:3])) + (", …" if len(spec.path) > 3 else "")
    format_ = _format(spec, list(found.values()), where)
    named = {location.path for location in located}  # a file named by itself is meant, whatever its suffix
    chosen = tuple(
        file
        for path, file in found.items()
        if path in named or is_of(format_, file.name) or (format_ == "images" and file.is_metadata)
    )
    if not chosen:
        suffixes = ", ".join(_SUFFIXES[format_])
        raise InputError(f"{where}: no {format_} files ({suffixes}) among {len(found)} files")
    return InputFiles(format_, chosen, root, len(found) - len(chosen))


def is_of(format_: Format, name: str) -> bool:
    """Whether a file found in a folder is one of the format's: by its suffix, and not hidden.

    Names beginning with a dot are hidden; among tables those beginning with an underscore too, as Spark and Arrow
    have it (cameras write pictures called _MG_1234.jpg).
    """
    hidden = (".",) if format_ == "images" else (".", "_")
    parts = name.split("/")
    return parts[-1].lower().endswith(_SUFFIXES.get(format_, ())) and not any(part.startswith(hidden) for part in parts)


def _common_folder(roots: Sequence[Location]) -> Location:
    for root in roots:
        if root.scheme != roots[0].scheme or root.filesystem != roots[0].filesystem:
            raise InputError(
                f"input.path: {roots[0]} and {root} lie on different storages; bring them to one, or run one job each"
            )
    parts = [root.path.split("/") for root in roots]
    depth = 0
    while all(depth < len(path) and path[depth] == parts[0][depth] for path in parts):
        depth += 1
    return roots[0].at("/".join(parts[0][:depth]))


def _format(spec: InputSpec, files: Sequence[InputFile], where: str) -> Format:
    """The format asked for, or the only one there is; pictures and their metadata files are one."""
    if spec.format != "auto":
        return spec.format
    if not files:
        raise InputError(f"{where}: the folder holds no files")
    counts: Counter[Format] = Counter()
    for file in files:
        counts.update(format_ for format_ in get_args(Format) if is_of(format_, file.name))
    if counts["images"]:
        metadata = [file.name for file in files if file.is_metadata]
        counts["parquet"] -= sum(is_of("parquet", name) for name in metadata)
        counts["jsonl"] -= sum(is_of("jsonl", name) for name in metadata)
    present = [format_ for format_, count in counts.items() if count]
    if len(present) == 1:
        return present[0]
    if not present:
        known = ", ".join(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
        raise InputError(
            f"{where}: no file has a known suffix ({known}); the first is {files[0].name!r}. "
            "Set input.format if you know it"
        )
    held = ", ".join(f"{counts[format_]} {format_}" for format_ in present)
    raise InputError(f"{where}: files of several formats ({held}); set input.format to say which holds the rows")
