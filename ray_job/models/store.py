"""Models in a bucket: their files are downloaded once on each machine, into a folder that its processes share.

Whoever downloads holds a file lock, which the kernel releases when its process dies, killed ones too. On a network file
system the lock is as good as the server's locks; where there are none at all `filelock` falls back to a marker file
with a warning, and a marker that a killed process on another machine leaves behind has to be deleted by hand. So keep
RAY_JOB_CACHE on a local disk; two processes that download at once cost time, but a file is only ever visible whole.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from pyarrow import fs

from ray_job.errors import InputError, ModelError
from ray_job.redaction.logs import logger_of
from ray_job.storage.places import STORAGE_ERRORS, Location, list_files, locate, reason

_CACHE = "RAY_JOB_CACHE"
_SMALL, _WEIGHTS = (".json", ".jinja"), ".safetensors"  # nothing else is downloaded: no code, no pickles
_CHUNK_BYTES = 16 * 2**20
_LOG = logger_of(__name__)


def download_model(uri: str, *, with_weights: bool) -> Path:
    """The local folder of a model in a bucket; the first process downloads it, the others wait.

    The folder lies below RAY_JOB_CACHE, by default ~/.cache/ray_job, and is named by the files' names, sizes and
    times: a model that is replaced in its bucket gets another folder.

    Args:
        uri: of the folder, such as s3://bucket/models/phi-3-vision.
        with_weights: without them only the small files are downloaded, which preparing rows and planning need.

    Raises:
        ModelError: there is no such model, or the storage or the disk fails.
    """
    try:
        source = locate(uri)
        files = [info for info in list_files(source, recursive=False) if _suffix(info) in (*_SMALL, _WEIGHTS)]
    except InputError as error:
        raise ModelError(f"model.path: {error}") from None
    if source.is_local:
        return Path(source.path)
    if not files:
        raise ModelError(f"model.path: {source} holds no {_SMALL[0]} and {_WEIGHTS} files")
    wanted = [info for info in files if with_weights or _suffix(info) in _SMALL]
    folder = _cache_root() / _digest(source, files)
    if any(not (folder / info.base_name).exists() for info in wanted):
        with _locked(folder):
            _copy(source, [info for info in wanted if not (folder / info.base_name).exists()], folder)
    return folder


def _copy(source: Location, files: Iterable[fs.FileInfo], folder: Path) -> None:
    """Downloads files, each visible under its name once it is whole."""
    for abandoned in folder.glob(".*.part"):  # by a process that was killed
        abandoned.unlink(missing_ok=True)
    for info in files:
        target = folder / info.base_name
        part = folder / f".{info.base_name}.{uuid.uuid4().hex}.part"
        _LOG.info("downloading %s (%.1f MB) to %s", source.at(info.path), (info.size or 0) / 1e6, folder)
        try:
            with source.filesystem.open_input_stream(info.path) as stream, part.open("wb") as file:
                shutil.copyfileobj(stream, file, _CHUNK_BYTES)
                if file.tell() != info.size:
                    raise OSError(f"{file.tell()} bytes came, {info.size} were announced")
            part.replace(target)
        except STORAGE_ERRORS as error:
            raise ModelError(
                f"{source.at(info.path)}: cannot be downloaded to {folder}: {reason(error)}. Set {_CACHE} to a folder "
                "with room for the model"
            ) from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process of this machine at a time."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # the second where a file system has no locks
        why = getattr(error, "strerror", None) or error
        raise ModelError(
            f"{folder}: cannot be written or locked: {why}. Set {_CACHE} to a folder on a local disk"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _cache_root() -> Path:
    return Path(os.environ.get(_CACHE) or "~/.cache/ray_job").expanduser() / "models"


def _digest(source: Location, files: Iterable[fs.FileInfo]) -> str:
    lines = [str(source), *(f"{info.base_name} {info.size} {info.mtime_ns}" for info in files)]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return f"{posixpath.basename(source.path)}-{digest}"


def _suffix(info: fs.FileInfo) -> str:
    return posixpath.splitext(str(info.base_name))[1]
