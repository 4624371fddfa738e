"""Which files make up the input, their format, and the name of each.

A file's name is its path relative to the input's folder (of the file itself for one file; of the fixed part of a
glob; of the nearest folder that holds all inputs when there are several). Row ids are made from names, so a
name depends only on the input's own layout: not on the machine, the order of the files, or where the folder is.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from ray_job.errors import InputError
from ray_job.inputs.choosing import CAPTION_SUFFIXES, FileKinds, is_metadata
from ray_job.inputs.detection import HEAD_BYTES, Kind, by_content, by_name
from ray_job.inputs.skipped import NOTHING, Skipped, counted
from ray_job.inputs.table_folders import find_table
from ray_job.redaction.text import public_uri
from ray_job.spec import InputSpec
from ray_job.spec.input import Format
from ray_job.storage.heads import read_head
from ray_job.storage.places import Location, expand, expand_braces, locate, parse_uri

_THREADS = 16


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of the input."""

    location: Location
    name: str  # relative to the input
    num_bytes: int | None  # None: not a regular file, or its storage does not say
    kind: Kind = "other"

    @property
    def is_metadata(self) -> bool:
        """Whether it describes the pictures of its folder."""
        return is_metadata(self.name)


@dataclass(frozen=True, slots=True)
class InputFiles:
    """The input's files of one format, in the order their rows come."""

    format: Format
    files: tuple[InputFile, ...]  # pictures come with the metadata files and captions beside them; tables with all
    root: Location  # the folder names are relative to
    skipped: Skipped = NOTHING

    def __str__(self) -> str:
        """How many there are: `3 files of format csv`."""
        num_aside = sum(file.is_metadata or file.kind in ("text", "object") for file in self.files)
        if self.format != "images" or not num_aside:
            return f"{counted(len(self.files))} of format {self.format}"
        return f"{counted(len(self.files) - num_aside)} of format images, and {counted(num_aside)} about them"

    def check_image_root(self, spec: InputSpec) -> None:
        """For formats whose pictures are files.

        Raises:
            InputError: there is no `image_root`.
        """
        if self.image_root(spec) is None:
            text = "no folder holds all these inputs; bring them together, or set input.image_root"
            raise InputError(f"input.path: {text}")

    def image_root(self, spec: InputSpec) -> Location | None:
        """Where relative picture paths start: `input.image_root`, else the input's folder.

        None where only the top of the storage holds all inputs: every file would lie within that.
        """
        if spec.image_root is not None:
            is_bucket = parse_uri(spec.image_root) is not None
            return locate(spec.image_root, spec.storage_options if is_bucket else None)
        return self.root if self.root.path.strip("/") else None


def find_files(spec: InputSpec) -> InputFiles:
    """Lists the input, decides its format and names its files. A file that several paths match is read once.

    Raises:
        InputError: nothing there, formats mixed or unknown, inputs on different storages, or a file that must be
            looked into cannot be read.
    """
    located = [location for path in spec.path for location in expand_braces(path, spec.storage_options)]
    expanded = [expand(location) for location in located]
    root = _common_folder([folder for folder, _ in expanded])
    prefix = len(root.path.rstrip("/")) + 1 if root.path else 0
    found: dict[str, InputFile] = {}
    for _, infos in expanded:
        for info in infos:
            name = info.path[prefix:].lstrip("/")
            found.setdefault(name, InputFile(root.at(info.path), name, info.size))
    where = ", ".join(map(public_uri, spec.path[:3])) + (", …" if len(spec.path) > 3 else "")
    table = find_table(spec, found, root)
    if table is not None:
        return InputFiles(table, tuple(found.values()), root)
    named = {location.path[prefix:].lstrip("/") for location in located}
    kinds = _kinds(spec, found.values(), named)
    return _chosen(spec, root, found, kinds, named, where)


def _chosen(
    spec: InputSpec,
    root: Location,
    found: Mapping[str, InputFile],
    kinds: Mapping[str, Kind],
    named: set[str],
    where: str,
) -> InputFiles:
    """The files of the format; those named by themselves are meant, whatever they are called."""
    together = FileKinds(kinds)
    format_ = together.format(where) if spec.format == "auto" else spec.format
    reasons = {name: None if name in named else together.reason_skipped(name, format_) for name in found}
    skipped = Skipped.of((name, why) for name, why in reasons.items() if why is not None)
    chosen = [
        InputFile(file.location, name, file.num_bytes, kinds[name])
        for name, file in found.items()
        if reasons[name] is None
    ]
    if format_ == "images" and all(file.kind in ("text", "object") for file in chosen):
        chosen = []
    if not chosen:
        raise InputError(f"{where}: no {format_} files; there are {skipped.text()}. Check input.format")
    return InputFiles(format_, tuple(chosen), root, skipped)


def _kinds(spec: InputSpec, files: Iterable[InputFile], named: set[str]) -> dict[str, Kind]:
    """What each file holds: by its name; by its first bytes where the name does not tell, or may not decide."""
    is_asked = spec.format != "auto"  # then names do not decide
    by_names = {file.name: by_name(file.name) for file in files}
    stems = {posixpath.splitext(name)[0] for name, kind in by_names.items() if kind == "images"}
    kinds: dict[str, Kind] = {}
    unclear: list[InputFile] = []
    for file in files:
        kind, (stem, suffix) = by_names[file.name], posixpath.splitext(file.name)
        if stem in stems and suffix in CAPTION_SUFFIXES:
            kind = kind or "object"
        elif kind is None and file.num_bytes == 0:
            kind = "empty"
        elif kind is None and file.num_bytes is None and file.location.is_local:
            kind = "other"  # a pipe would wait for ever
        elif kind is None or (kind in ("text", "other") and file.num_bytes and (is_asked or file.name in named)):
            unclear.append(file)
        kinds[file.name] = kind or "other"
    with ThreadPoolExecutor(_THREADS) as pool:
        heads = pool.map(partial(_kind_of_content, encoding=spec.encoding), unclear)
        for file, found in zip(unclear, heads, strict=True):
            if kinds[file.name] == "other" or found not in ("other", "text"):
                kinds[file.name] = found
    return kinds


def _kind_of_content(file: InputFile, encoding: str | None) -> Kind:
    return by_content(read_head(file.location, HEAD_BYTES), encoding)


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
