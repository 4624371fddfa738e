"""Models in a bucket: their files are fetched once on each machine, into a folder that its processes share."""

from __future__ import annotations

import fcntl
import hashlib
import os
import posixpath
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs

from ray_job.errors import InputError, ModelError
from ray_job.redaction.logs import logger_of
from ray_job.storage.places import STORAGE_ERRORS, Location, list_files, locate, reason

_CACHE = "RAY_JOB_CACHE"
_SMALL, _WEIGHTS = ".json", ".safetensors"  # nothing else is fetched: no code, no pickles
_CHUNK_BYTES = 16 * 2**20
_LOG = logger_of(__name__)


def fetch(uri: str, *, with_weights: bool) -> Path:
    """The local folder of a model in a bucket; whoever comes first fetches, the others wait for it.

    The folder lies below RAY_JOB_CACHE, by default ~/.cache/ray_job, and is named by the files' names, sizes and
    times: a model that is replaced in its bucket gets another.

    Args:
        uri: of the folder, such as s3://bucket/models/phi-3-vision.
        with_weights: without them only the JSON files are fetched, which preparing rows and planning need.

    Raises:
        ModelError: there is no such model, or the storage or the disk fails.
    """
    try:
        source = locate(uri)
        files = [info for info in list_files(source, recursive=False) if _suffix(info) in (_SMALL, _WEIGHTS)]
    except InputError as error:
        raise ModelError(f"model.path: {error}") from None
    if source.is_local:
        return Path(source.path)
    if not files:
        raise ModelError(f"model.path: {source} holds no {_SMALL} and {_WEIGHTS} files")
    wanted = [info for info in files if with_weights or _suffix(info) == _SMALL]
    folder = _cache_root() / _digest(source, files)
    if any(not (folder / info.base_name).exists() for info in wanted):
        with _locked(folder):
            _copy(source, [info for info in wanted if not (folder / info.base_name).exists()], folder)
    return folder


def _copy(source: Location, files: Iterable[fs.FileInfo], folder: Path) -> None:
    """Fetches files, each visible under its name when it is whole."""
    for info in files:
        target = folder / info.base_name
        part = folder / f".{info.base_name}.part"
        _LOG.info("fetching %s (%.1f MB) to %s", source.at(info.path), (info.size or 0) / 1e6, folder)
        try:
            with source.filesystem.open_input_stream(info.path) as stream, part.open("wb") as file:
                shutil.copyfileobj(stream, file, _CHUNK_BYTES)
            part.replace(target)
        except STORAGE_ERRORS as error:
            raise ModelError(
                f"{source.at(info.path)}: cannot be fetched to {folder}: {reason(error)}. Set {_CACHE} to a folder "
                "with room for the model"
            ) from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process of this machine at a time; the kernel lets go when it dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ModelError(f"{folder}: cannot be written: {error.strerror}. Set {_CACHE} to a folder that can") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _cache_root() -> Path:
    return Path(os.environ.get(_CACHE) or "~/.cache/ray_job").expanduser() / "models"


def _digest(source: Location, files: Iterable[fs.FileInfo]) -> str:
    lines = [str(source), *(f"{info.base_name} {info.size} {info.mtime_ns}" for info in files)]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return f"{posixpath.basename(source.path)}-{digest}"


def _suffix(info: fs.FileInfo) -> str:
    return posixpath.splitext(str(info.base_name))[1]
