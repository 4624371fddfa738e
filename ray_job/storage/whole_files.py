"""Files that are visible whole or not at all, on local disks and on object stores.

A local file is written under a hidden name, synced and renamed, and so are the entries of the folders made for it. An
object store shows an object only when its upload is complete, and has no rename, so there it is written under its own
name.
"""

from __future__ import annotations

import errno
import json
import mimetypes
import os
import posixpath
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
from pyarrow import fs

from ray_job.errors import RayJobError
from ray_job.storage.places import STORAGE_ERRORS, Location, reason
from ray_job.storage.retrying import Retrying

_TEMPORARY = ".tmp"
_FINAL = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "AccessDenied", "NoSuchBucket", "Forbidden")
_CHUNK_BYTES = 2**20
_STORE_ATTEMPTS = 6  # some ten seconds, beside what the store's own client tries


def write_whole(root: Location, name: str, data: pa.Buffer | bytes) -> None:
    """Writes `root/name`, replacing what is there; missing folders are made.

    Raises:
        RayJobError: the storage refuses, with what to do.
    """
    _write(root, posixpath.join(root.path, name), lambda: [data])


def write_chunks(root: Location, name: str, chunks: Iterable[bytes]) -> None:
    """The same with a file that need not fit into memory.

    For an object store it is gathered on the local disk first: an upload could not be taken back half-way.
    """
    path = posixpath.join(root.path, name)
    if root.is_local:
        _write(root, path, lambda: chunks)
        return
    with tempfile.TemporaryFile() as gathered:
        try:
            for chunk in chunks:
                gathered.write(chunk)
        except OSError as error:
            raise RayJobError(f"{root.at(path)}: cannot be gathered in {tempfile.gettempdir()}: {error}") from None

        def again() -> Iterator[bytes]:
            gathered.seek(0)
            return iter(partial(gathered.read, _CHUNK_BYTES), b"")

        _write(root, path, again)


def write_json(root: Location, name: str, value: Any) -> None:
    """The same with JSON for people to read."""
    write_whole(root, name, json.dumps(value, indent=2, ensure_ascii=False).encode())


def read_text(root: Location, name: str) -> str | None:
    """A small file's text; None where there is none.

    Raises:
        RayJobError: the storage fails.
    """
    try:
        with root.filesystem.open_input_stream(posixpath.join(root.path, name)) as stream:
            return bytes(stream.read()).decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except STORAGE_ERRORS as error:
        raise RayJobError(f"{root}/{name}: cannot be read: {reason(error)}") from None


def count_lines(root: Location, name: str) -> int | None:
    """How many newlines a file has; None where there is no file.

    Raises:
        RayJobError: the storage fails.
    """
    try:
        with root.filesystem.open_input_stream(posixpath.join(root.path, name)) as stream:
            return sum(bytes(chunk).count(b"\n") for chunk in iter(partial(stream.read, _CHUNK_BYTES), b""))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except STORAGE_ERRORS as error:
        raise RayJobError(f"{root}/{name}: cannot be read: {reason(error)}") from None


def part_files(root: Location, folder: str) -> list[fs.FileInfo]:
    """The committed parts in a folder, by name; none where there is no such folder.

    Raises:
        RayJobError: the storage fails.
    """
    infos = _list(root, folder)
    parts = [info for info in infos if info.base_name.startswith("part-") and info.extension == "parquet"]
    return sorted(parts, key=lambda info: str(info.path))


def remove_leftovers(root: Location) -> None:
    """Deletes what writers that were killed left under hidden names."""
    if not root.is_local:
        return
    for folder in ("", "data", "errors", "_openai"):
        for info in _list(root, folder):
            if info.base_name.startswith(".") and info.base_name.endswith(_TEMPORARY):
                os.unlink(info.path)


def is_empty(root: Location) -> bool:
    """Whether nothing lies under a location, hidden files aside.

    Raises:
        RayJobError: it is a file, or the storage fails.
    """
    try:
        info = root.filesystem.get_file_info(root.path)
        if info.type == fs.FileType.File:
            raise RayJobError(f"{root}: is a file; output.path names a folder")
        selector = fs.FileSelector(root.path, allow_not_found=True)
        return all(info.base_name.startswith(".") for info in root.filesystem.get_file_info(selector))
    except STORAGE_ERRORS as error:
        raise RayJobError(f"{root}: cannot be listed: {reason(error)}") from None


def remove(root: Location, names: Iterable[str]) -> None:
    """Deletes files, where they exist.

    Raises:
        RayJobError: the storage refuses.
    """
    for name in names:
        try:
            root.filesystem.delete_file(posixpath.join(root.path, name))
        except FileNotFoundError:
            continue
        except STORAGE_ERRORS as error:
            raise RayJobError(f"{root}/{name}: cannot be deleted: {reason(error)}") from None


def make_folders(path: str) -> None:
    """Makes a local folder and those above it, and syncs the entry of each new one in the folder it lies in.

    Raises:
        OSError: a folder cannot be made, or the disk fails.
    """
    missing, path = [], os.path.abspath(path)
    while not os.path.isdir(path):
        if os.path.lexists(path) and not os.path.islink(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        os.makedirs(folder, exist_ok=True)
        _sync_folder(os.path.dirname(folder))


def sync_folders(root: Location, names: Iterable[str]) -> None:
    """Makes the entries of local folders outlive a power cut, whichever process wrote them.

    Raises:
        RayJobError: the disk fails.
    """
    for name in names if root.is_local else ():
        path = posixpath.join(root.path, name)
        try:
            if os.path.isdir(path):
                _sync_folder(path)
        except OSError as error:
            raise RayJobError(f"{root.at(path)}: cannot be synced to disk: {reason(error)}. Check the disk") from None


def _list(root: Location, folder: str) -> list[fs.FileInfo]:
    """The files in a folder; none where there is no such folder."""
    selector = fs.FileSelector(posixpath.join(root.path, folder), allow_not_found=True)
    try:
        infos: list[fs.FileInfo] = root.filesystem.get_file_info(selector)
    except STORAGE_ERRORS as error:
        raise RayJobError(f"{root}: cannot be listed: {reason(error)}") from None
    return [info for info in infos if info.type == fs.FileType.File]


def _write(root: Location, path: str, chunks: Callable[[], Iterable[pa.Buffer | bytes]]) -> None:
    try:
        if root.is_local:
            _write_local(path, chunks())
            return
        Retrying(_STORE_ATTEMPTS)(lambda: _upload(root, path, chunks()), _is_passing)
    except STORAGE_ERRORS as error:
        where = root.at(path)
        raise RayJobError(f"{where}: cannot be written: {reason(error)}. Make room or set output.path") from None


def _upload(root: Location, path: str, chunks: Iterable[pa.Buffer | bytes]) -> None:
    kind = mimetypes.guess_type(path)[0]  # else a browser would download a page and not show it
    with root.filesystem.open_output_stream(path, metadata={"Content-Type": kind} if kind else None) as stream:
        for chunk in chunks:
            stream.write(chunk)


def _is_passing(error: Exception) -> bool:
    """Whether an object store may take the same upload a little later."""
    return isinstance(error, OSError) and not any(word in str(error) for word in _FINAL)


def _write_local(path: str, chunks: Iterable[pa.Buffer | bytes]) -> None:
    folder, name = os.path.split(path)
    make_folders(folder)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}{_TEMPORARY}")
    try:
        with open(temporary, "wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync_folder(folder)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def _sync_folder(folder: str) -> None:
    """Makes what was created or renamed in a folder outlive a power cut."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder one may write to and not list
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
