"""Folders that are one table together: some of their files hold deleted rows or older versions; none is read loose."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterable
from typing import Literal, TypeAlias

from pyarrow import fs

from ray_job.errors import InputError
from ray_job.spec import InputSpec
from ray_job.storage.places import STORAGE_ERRORS, Location

TableFormat: TypeAlias = Literal["delta", "iceberg", "lance", "hf"]
_ICEBERG_METADATA = r"[^/]+\.metadata\.json(\.gz)?"
_MAX_FOLDERS = 100  # that are looked at: each takes requests to a bucket
_MAX_DEPTH = 4  # of a table's folder above its files, without `key=value` folders
# What the folder of a table holds, by names relative to it; all patterns must be met.
_SIGNS: tuple[tuple[TableFormat, tuple[str, ...]], ...] = (
    ("delta", (r"_delta_log/.+",)),
    ("iceberg", (rf"metadata/{_ICEBERG_METADATA}",)),
    ("iceberg", (_ICEBERG_METADATA,)),
    ("lance", (r"_versions/.+",)),
    ("hf", (r"dataset_dict\.json",)),
    ("hf", (r"state\.json", r"dataset_info\.json")),
)
# Few of many names are worth a closer look.
_OF_A_TABLE = re.compile(r"_delta_log/|metadata\.json|_versions/|dataset_dict\.json$|state\.json$|dataset_info\.json$")


def find_table(spec: InputSpec, names: Collection[str], root: Location) -> TableFormat | None:
    """The table that the input is, if it is one.

    Args:
        spec: with the format asked for.
        names: of all files of the input, relative to its folder.
        root: that folder.

    Raises:
        InputError: a table lies among other files, or its files are asked for as loose ones.
    """
    names = [name for name in names if _OF_A_TABLE.search(name)]
    for format_, signs in _SIGNS:
        if spec.format == format_:
            return format_
        folders = set.intersection(
            *({f for f in (_folder(name, sign) for name in names) if f is not None} for sign in signs)
        )
        if not folders or (spec.format != "auto" and format_ == "hf"):
            continue
        folder = min(folders, key=lambda folder: (len(folder), folder))
        if folder == "" and spec.format == "auto":
            return format_
        raise _of_table(root.at(posixpath.join(root.path, folder)) if folder else root, format_)
    return None


def check_loose(root: Location, names: Iterable[str]) -> None:
    """Checks that Parquet files which a glob, a part of a folder or their own names chose are of no table.

    Args:
        root: the input's folder.
        names: of its files, relative to it.

    Raises:
        InputError: they lie in the folder of a Delta or Iceberg table, which says which of their rows are deleted.
    """
    inner = {name.rpartition("/")[0] for name in names}
    folders = {root.path: None} | {posixpath.join(root.path, f): None for f in sorted(map(_without_keys, inner)) if f}
    for path in [*folders][:_MAX_FOLDERS]:
        for _ in range(_MAX_DEPTH):
            folders.setdefault(path)
            path = posixpath.dirname(path)
    places = [root.at(path) for path in folders if path.strip("/")]
    logs = _are_folders(root, [posixpath.join(place.path, "_delta_log") for place in places])
    metadata = _are_folders(root, [posixpath.join(place.path, "metadata") for place in places])
    for place, is_delta, has_metadata in zip(places, logs, metadata, strict=True):
        if is_delta:
            raise _of_table(place, "delta")
        if has_metadata and posixpath.join(place.path, "data") in folders and _is_iceberg(place):
            raise _of_table(place, "iceberg")


def _without_keys(folder: str) -> str:
    """The folder that `key=value` folders lie in."""
    return folder.partition("=")[0].rpartition("/")[0] if "=" in folder else folder


def _are_folders(root: Location, paths: list[str]) -> list[bool]:
    try:
        return [info.type == fs.FileType.Directory for info in root.filesystem.get_file_info(paths)]
    except STORAGE_ERRORS:  # outside of what may be listed
        return [False] * len(paths)


def _is_iceberg(place: Location) -> bool:
    try:
        infos = place.filesystem.get_file_info(fs.FileSelector(posixpath.join(place.path, "metadata")))
    except STORAGE_ERRORS:
        return False
    return any(re.fullmatch(_ICEBERG_METADATA, info.base_name) for info in infos)


def _of_table(place: Location, format_: TableFormat) -> InputError:
    return InputError(
        f"{place}: this folder is a table of format {format_}, and not all of its files hold rows of it. Set "
        f"input.path to it, and input.format to {format_} or auto"
    )


def _folder(name: str, sign: str) -> str | None:
    """The folder from which on a name shows the sign; None where it does from none."""
    found = re.fullmatch(rf"(?:(.*?)/)?{sign}", name, re.DOTALL)
    return None if found is None else found[1] or ""
