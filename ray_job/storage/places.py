"""Places on any pyarrow filesystem: parse, show without secrets, list, expand globs, open.

A local path, or a URI that `pyarrow.fs.FileSystem.from_uri` knows (`s3://`, `gs://`, `abfs://`, `hdfs://`,
`file://`), becomes a `Location`. AWS_* variables are honoured, AWS_ENDPOINT_URL among them; a URI may carry
`?endpoint_override=…&region=…`. Credentials in a URI stay inside the filesystem object: no message shows them.
It knows nothing of formats or rows.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
from pyarrow import fs

from ray_job.errors import InputError
from ray_job.redaction.text import public_uri, without_parts_of, without_secrets
from ray_job.storage.azure import SCHEMES as AZURE
from ray_job.storage.azure import azure_uri, parse_azure
from ray_job.storage.buckets import account_with_options, bucket_filesystem
from ray_job.storage.globs import braces_expanded, glob_pattern
from ray_job.storage.options import SCHEMES as WITH_OPTIONS

_URI = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://(.*)$", re.DOTALL)
_SCHEMES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfss": "abfs"}  # Spark's names for the same places
_GLOB = re.compile(r"[*?\[]")
_REASON_CHARS = 300
STORAGE_ERRORS = (OSError, pa.ArrowException, NotImplementedError, ImportError)


@dataclass(frozen=True)
class Location:
    """A file or folder on a filesystem. Picklable; `str()` shows it without credentials."""

    filesystem: fs.FileSystem
    path: str  # absolute on a local disk, `bucket/key` on an object store; no trailing slash
    scheme: str = "file"
    account: str = ""  # of Azure's paths: see `azure.py`

    def __str__(self) -> str:
        return self._uri(self.path)

    @property
    def reference(self) -> str:
        """An absolute path, or a URI that `parse_uri` reads back; without credentials."""
        return self.path if self.is_local else self._uri(quote(self.path))

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine's disk."""
        return self.scheme == "file"

    @property
    def parent(self) -> Location:
        """The folder it lies in."""
        return self.at(posixpath.dirname(self.path))

    def at(self, path: str) -> Location:
        """Another path of the same filesystem."""
        return replace(self, path=path)

    def _uri(self, path: str) -> str:
        if self.account:
            return azure_uri(self.account, path)
        return path if self.is_local else f"{self.scheme}://{path}"


def locate(uri_or_path: str, options: Mapping[str, str] | None = None) -> Location:
    """Where a path or URI points; nothing is read, except that some stores look up their region.

    Args:
        uri_or_path: of a file, folder or glob.
        options: of its bucket (`options.py`), instead of the URI's own.

    Raises:
        InputError: the URI does not parse, its kind of storage is not available, or has not these options.
    """
    try:
        uri_or_path.encode()
    except UnicodeEncodeError:
        raise InputError(f"{uri_or_path!a}: the path is not UTF-8; rename the file or folder") from None
    parsed = parse_uri(uri_or_path)
    if options:
        _check_options(uri_or_path, parsed)
    if parsed is None:
        return Location(fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri_or_path)))
    scheme, path = parsed
    if scheme == "file":
        return Location(fs.LocalFileSystem(), os.path.abspath(path))
    try:
        if options:
            return _with_options(uri_or_path, scheme, path, options)
        filesystem, path = fs.FileSystem.from_uri(_quoted(uri_or_path, scheme))
    except (*STORAGE_ERRORS, ValueError) as error:
        raise InputError(
            f"{public_uri(uri_or_path)}: {without_parts_of(uri_or_path, reason(error))}. Use a path or a URI such as "
            "s3://bucket/folder, and options behind it as in ?region=…&endpoint_override=…"
        ) from None
    return Location(filesystem, path.rstrip("/"), scheme, account_of(uri_or_path))


def _check_options(uri_or_path: str, parsed: tuple[str, str] | None) -> None:
    """Options that would have no effect are refused."""
    shown = public_uri(uri_or_path)
    if parsed is None or parsed[0] not in WITH_OPTIONS:
        kinds = ", ".join(f"{scheme}://" for scheme in WITH_OPTIONS)
        raise InputError(f"{shown}: storage_options are for {kinds}; leave them out, or set the environment")
    if shown != uri_or_path:
        raise InputError(f"{shown}: has options of its own; leave them out, or storage_options")


def _with_options(uri: str, scheme: str, path: str, options: Mapping[str, str]) -> Location:
    account = account_with_options(account_of(uri), options) if scheme == "abfs" else ""
    filesystem = bucket_filesystem(scheme, path.partition("/")[0], account, options)
    return Location(filesystem, path.rstrip("/"), scheme, account)


def parse_uri(text: str) -> tuple[str, str] | None:
    """Scheme and path (`bucket/key` for object stores) of a URI, credentials and query left out; None for a path."""
    match = _URI.match(text)
    if match is None:
        return None
    scheme = match[1].lower()
    rest = match[2].partition("?")[0]
    host, slash, path = rest.partition("/")
    if scheme == "file":
        return scheme, unquote(slash + path if host in ("", "localhost") else rest)
    if scheme in AZURE:
        return "abfs", unquote(parse_azure(*_halves(rest))[1])
    return _SCHEMES.get(scheme, scheme), unquote(host.rpartition("@")[2] + slash + path)


def account_of(text: str) -> str:
    """The account of an Azure URI; an empty text for anything else."""
    match = _URI.match(text)
    if match is None or match[1].lower() not in AZURE:
        return ""
    return parse_azure(*_halves(match[2].partition("?")[0]))[0]


def is_same_storage(scheme: str, account: str, root: Location) -> bool:
    """Whether a URI's scheme and account are those of a place; an account that is not named is the place's."""
    return scheme == root.scheme and account in ("", root.account)


def _halves(rest: str) -> tuple[str, str]:
    """What stands before a URI's first slash and what follows; a key before an @ may hold slashes itself."""
    user, at, rest = rest.rpartition("@") if ":" in rest.partition("/")[0] else ("", "", rest)
    host, slash, path = rest.partition("/")
    return user + at + host, slash + path


def reason(error: BaseException) -> str:
    """The first line of a storage error, fit for a message."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    line = without_secrets(str(text).splitlines()[0]).rstrip(".")
    return line if len(line) <= _REASON_CHARS else f"{line[: _REASON_CHARS // 2]} … {line[-_REASON_CHARS // 2 :]}"


def list_files(location: Location, recursive: bool) -> list[fs.FileInfo]:
    """The files below a folder, sorted by path.

    On a local disk links are followed, once each folder, and a link to nothing is listed too: its row must fail by
    itself rather than be missing.

    Raises:
        InputError: the folder does not exist or cannot be listed.
    """
    try:
        if location.is_local:
            files = list(_walk(location.path, recursive))
        else:
            selector = fs.FileSelector(location.path, recursive=recursive)
            infos: Sequence[fs.FileInfo] = location.filesystem.get_file_info(selector)
            files = [info for info in infos if info.type == fs.FileType.File]
    except STORAGE_ERRORS as error:
        raise InputError(f"{location}: cannot be listed: {reason(error)}") from None
    except UnicodeEncodeError as error:
        raise InputError(f"{location}: the name {error.object!a} is not UTF-8; rename the file") from None
    return sorted(files, key=lambda info: str(info.path))


def expand(location: Location) -> tuple[Location, list[fs.FileInfo]]:
    """The files that a path stands for, sorted, and the folder that their relative names start from.

    A folder stands for all files below it; a file for itself; a path with `*`, `?`, `[…]` or `**` (any number of
    folders) for every match, where a folder that matches stands for all files below it. A name that exists is never
    read as a glob. In a URI write `?` as `[!/]`: there a question mark begins the options.

    Raises:
        InputError: there is no such path, nothing matches, or the storage fails.
    """
    try:
        info = location.filesystem.get_file_info(location.path)
    except STORAGE_ERRORS as error:
        raise InputError(f"{location}: {reason(error)}") from None
    if info.type == fs.FileType.Directory:
        return location, list_files(location, recursive=True)
    if info.type != fs.FileType.NotFound:
        return location.parent, [info]
    glob = _GLOB.search(location.path)
    if glob is None:
        raise InputError(f"{location}: no such file or folder. Check input.path; relative paths start where you are")
    head = posixpath.dirname(location.path[: glob.start()])
    base = location.at(head)
    pattern = glob_pattern(location.path[len(head) :].lstrip("/"))
    files = [info for info in list_files(base, recursive=True) if _matches(pattern, str(info.path), head)]
    if not files:
        raise InputError(f"{location}: nothing matches. Folders below {base} are searched where the pattern names them")
    return base, files


def expand_braces(uri_or_path: str, options: Mapping[str, str] | None = None) -> list[Location]:
    """The places that a path with braces stands for, as in `shard-{000..012}.tar`; a name that exists is only itself.

    Args:
        uri_or_path: as for `locate`.
        options: the same.

    Raises:
        InputError: as `locate`, or the storage fails.
    """
    located = locate(uri_or_path, options)
    if "{" not in located.path:
        return [located]
    try:
        exists = located.filesystem.get_file_info(located.path).type != fs.FileType.NotFound
    except STORAGE_ERRORS as error:
        raise InputError(f"{located}: {reason(error)}") from None
    return [located] if exists else [located.at(path) for path in braces_expanded(located.path)]


def open_input(location: Location) -> Any:
    """A seekable file (`pyarrow.NativeFile`).

    Raises:
        InputError: it does not exist or cannot be opened.
    """
    try:
        return location.filesystem.open_input_file(location.path)
    except FileNotFoundError:
        raise InputError(f"{location}: no such file") from None
    except STORAGE_ERRORS as error:
        raise InputError(f"{location}: cannot be opened: {reason(error)}") from None


def _quoted(uri: str, scheme: str) -> str:
    """The URI with a known scheme, and the characters of globs and names escaped as Arrow's parser wants."""
    body, question, query = uri.partition("?")
    body = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", body.partition("://")[2])
    return f"{scheme}://" + quote(body, safe="/@:%!$&'()*+,;=~") + question + query


def _walk(folder: str, recursive: bool, seen: frozenset[str] = frozenset()) -> Iterator[fs.FileInfo]:
    seen = seen | {os.path.realpath(folder)}
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir():
                size = entry.stat().st_size if entry.is_file() else None
                yield fs.FileInfo(entry.path, type=fs.FileType.File, size=size)
            elif recursive and os.path.realpath(entry.path) not in seen:
                yield from _walk(entry.path, recursive, seen)


def _matches(pattern: re.Pattern[str], path: str, head: str) -> bool:
    """Whether a file, or a folder it lies in, matches a pattern relative to `head`."""
    parts = path[len(head) :].lstrip("/").split("/")
    return any(pattern.fullmatch("/".join(parts[:depth])) for depth in range(len(parts), 0, -1))
