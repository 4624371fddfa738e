"""Files that are visible whole or not at all, on local disks and on object stores.

A local file is written under a hidden name, synced and renamed. An object store shows an object only when its upload
is complete, and has no rename, so there it is written under its own name.
"""

from __future__ import annotations

import os
import posixpath
import uuid

import pyarrow as pa
from pyarrow import fs

from ray_job.errors import RayJobError
from ray_job.storage import STORAGE_ERRORS, Location, reason


def write_whole(root: Location, name: str, data: pa.Buffer | bytes) -> None:
    """Writes `root/name`, replacing what is there; missing folders are made.

    Raises:
        RayJobError: the storage refuses, with what to do.
    """
    path = posixpath.join(root.path, name)
    try:
        if root.is_local:
            _write_local(path, data)
            return
        with root.filesystem.open_output_stream(path) as stream:
            stream.write(data)
    except STORAGE_ERRORS as error:
        where = root.at(path)
        raise RayJobError(f"{where}: cannot be written: {reason(error)}. Make room or set output.path") from None


def read_text(root: Location, name: str) -> str | None:
    """A small file's text; None where there is none."""
    try:
        with root.filesystem.open_input_stream(posixpath.join(root.path, name)) as stream:
            return bytes(stream.read()).decode()
    except FileNotFoundError:
        return None


def parquet_files(root: Location, folder: str) -> list[Location]:
    """The committed parts in a folder, by name; none where there is no such folder."""
    selector = fs.FileSelector(posixpath.join(root.path, folder), allow_not_found=True)
    infos = [info for info in root.filesystem.get_file_info(selector) if info.type == fs.FileType.File]
    paths = [info.path for info in infos if info.base_name.startswith("part-") and info.extension == "parquet"]
    return [root.at(path) for path in sorted(paths)]


def is_empty(root: Location) -> bool:
    """Whether nothing lies under a location."""
    info = root.filesystem.get_file_info(root.path)
    if info.type == fs.FileType.File:
        return False
    selector = fs.FileSelector(root.path, allow_not_found=True)
    return not root.filesystem.get_file_info(selector)


def remove(root: Location, names: list[str]) -> None:
    """Deletes files and folders of these names, where they exist."""
    for name in names:
        path = posixpath.join(root.path, name)
        kind = root.filesystem.get_file_info(path).type
        if kind == fs.FileType.Directory:
            root.filesystem.delete_dir(path)
        elif kind == fs.FileType.File:
            root.filesystem.delete_file(path)


def _write_local(path: str, data: pa.Buffer | bytes) -> None:
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
