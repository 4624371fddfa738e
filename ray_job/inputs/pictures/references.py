"""The encoded bytes of a picture that a row names: embedded, as text (`embedded.py`), or in a file within a root.

Nothing outside the root is ever opened: no path that leaves it by `..`, by being absolute, by a link, or by naming
another bucket or storage, and no URL, unless its host is on a list (`web.py`). To allow more paths, the user sets
`input.image_root` to a folder that holds it all.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Collection, Mapping
from typing import Any

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.documents.references import names_document, split_reference
from ray_job.inputs.pictures.embedded import (
    MAX_PATH_CHARS,
    base64_picture,
    check_size,
    data_uri_picture,
    is_base64_picture,
    is_data_uri,
)
from ray_job.inputs.pictures.hub_cache import is_blob_of_snapshot
from ray_job.inputs.pictures.web import WebSession
from ray_job.prompts.json_text import has_half_pair
from ray_job.redaction.text import public_uri
from ray_job.spec import LimitsSpec
from ray_job.storage.places import STORAGE_ERRORS, Location, account_of, is_same_storage, parse_uri, reason
from ray_job.storage.regular_files import why_unreadable

_DENIED = ("ACCESS_DENIED", "Access Denied", "Forbidden", "Permission denied")
_SHOWN_CHARS = 200
_WEB = ("http", "https", "ftp", "ftps")


def read_picture(
    value: Any,
    *,
    root: Location | None,
    limits: LimitsSpec,
    allow_hosts: Collection[str] = (),
    web: WebSession | None = None,
    max_document_bytes: int = 0,
) -> bytes:
    """The encoded bytes of one picture.

    Args:
        value: a {bytes, path} struct (bytes win), bytes, a path, a URI, a `data:` URI, base64, or None.
        root: relative paths start here, and no path may leave it; None: paths are refused.
        limits: `max_image_bytes` counts before anything larger is read.
        allow_hosts: whose https URLs are fetched (`web.py`).
        web: fetches them, where several pictures share connections.
        max_document_bytes: counts instead for PDF files, and files of which a page is named (`a.tif#page=3`): these
            are read whole.

    Raises:
        RowError: IMAGE_MISSING, IMAGE_EMPTY, IMAGE_TOO_LARGE, IMAGE_FORBIDDEN, IMAGE_UNREADABLE, ROW_MALFORMED, or
            STORAGE where trying again may help.
    """
    if isinstance(value, Mapping):
        if not {"bytes", "path"} & value.keys():
            raise RowError(ErrorCode.ROW_MALFORMED, f"a picture with fields {sorted(value)}; {{bytes, path}} is known")
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if names_document(value):
        limits = limits.model_copy(update={"max_image_bytes": max(limits.max_image_bytes, max_document_bytes)})
    if isinstance(value, str):
        data = _of_text(split_reference(value)[0], root, limits, allow_hosts, web)
    elif isinstance(value, bytes | bytearray | memoryview):
        data = _of_bytes(bytes(value), limits.max_image_bytes)
    elif value is None:
        raise RowError(ErrorCode.IMAGE_MISSING, "the picture is null")
    else:
        raise RowError(ErrorCode.ROW_MALFORMED, f"a picture is bytes, a path or a URI, not {type(value).__name__}")
    if not data:
        code = ErrorCode.DOCUMENT_EMPTY if names_document(value) else ErrorCode.IMAGE_EMPTY
        raise RowError(code, f"the picture has zero bytes{_from(value)}")
    check_size(len(data), limits.max_image_bytes, "the picture")
    return data


def _of_bytes(data: bytes, max_bytes: int) -> bytes:
    """The bytes of a column, which may be a data URI or base64 that was written as bytes."""
    if data[:5].lower() == b"data:" and data.isascii():
        return data_uri_picture(data.decode(), max_bytes)
    if data.isascii() and is_base64_picture(text := data.decode()):
        return base64_picture(text, max_bytes)
    return data


def _of_text(
    text: str, root: Location | None, limits: LimitsSpec, allow_hosts: Collection[str], web: WebSession | None
) -> bytes:
    if not text.strip():
        raise RowError(ErrorCode.IMAGE_MISSING, "the picture's path is empty")
    if is_data_uri(text):
        return data_uri_picture(text, limits.max_image_bytes)
    if is_base64_picture(text) and not _is_file(text, root):
        return base64_picture(text, limits.max_image_bytes)
    if allow_hosts and (parse_uri(text) or ("",))[0] in _WEB:
        if web is not None:
            return web.get(text)
        with WebSession(allow_hosts, limits) as own:
            return own.get(text)
    return _read_file(place_of(text, root), limits.max_image_bytes)


def place_of(reference: str, root: Location | None) -> Location:
    """The place that a path or URI names, checked to be within the root.

    Raises:
        RowError: IMAGE_FORBIDDEN, or IMAGE_MISSING for a name no file can have.
    """
    shown = _shown(reference)
    uri = parse_uri(reference)
    if uri is not None and uri[0] in _WEB:
        raise _forbidden(
            f"{shown} is a URL, and URLs are not fetched unless input.allow_hosts lists their host; list it, download "
            "the picture first, or put its bytes in the row"
        )
    if root is None:
        raise _forbidden(f"{shown}: no folder holds all inputs; say where pictures may lie with input.image_root")
    if uri is not None and not is_same_storage(uri[0], account_of(reference), root):
        raise _forbidden(f"{shown} is not in {root}, on whose storage pictures must lie; set input.image_root")
    if "\0" in reference or has_half_pair(reference):
        raise RowError(ErrorCode.IMAGE_MISSING, f"{shown}: no such file")
    path = uri[1] if uri is not None else reference
    if uri is None and not path.startswith("/"):
        path = posixpath.join(root.path, path)
    path = posixpath.normpath(path)
    if not _is_within(path, root.path):
        raise _forbidden(f"{shown} leads out of {root}; set input.image_root to a folder that holds it")
    is_inside = not root.is_local or _is_within(os.path.realpath(path), os.path.realpath(root.path))
    if not is_inside and not is_blob_of_snapshot(path, root.path):
        raise _forbidden(f"{shown} is a link out of {root}; set input.image_root to a folder that holds its target")
    return root.at(path)


def _is_file(text: str, root: Location | None) -> bool:
    """Whether a text that may be base64 is the path of a file that may be read."""
    if root is None or not root.is_local or len(text) > MAX_PATH_CHARS:
        return False
    try:
        return os.path.isfile(place_of(text, root).path)
    except RowError:
        return False


def _read_file(location: Location, max_bytes: int) -> bytes:
    """The bytes of a file; never more than the limit."""
    try:
        if (why := why_unreadable(location)) is not None:
            raise _missing(location, why)
        with location.filesystem.open_input_file(location.path) as file:
            check_size(file.size(), max_bytes, str(location))
            return bytes(file.read())
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(location, "no such file") from None
    except (*STORAGE_ERRORS, ValueError) as error:
        raise _failed(location, error) from None


def _failed(location: Location, error: Exception) -> RowError:
    text = f"{_shown(str(location))}: {reason(error)}"
    if isinstance(error, OSError) and location.is_local and _is_no_name(error, location):
        return RowError(ErrorCode.IMAGE_MISSING, text)
    if isinstance(error, PermissionError) or any(word in str(error) for word in _DENIED):
        return RowError(ErrorCode.IMAGE_UNREADABLE, f"{text}; the job may not read it")
    return RowError(ErrorCode.STORAGE, text)


def _is_no_name(error: OSError, location: Location) -> bool:
    """Whether no file can have this name: too long, or a loop of links."""
    return any(len(part.encode(errors="replace")) > 255 for part in location.path.split("/")) or (
        len(location.path) > 4095 or "symbolic links" in str(error)
    )


def _is_within(path: str, folder: str) -> bool:
    folder = folder.rstrip("/")
    return path == folder or path.startswith(folder + "/")


def _from(value: Any) -> str:
    return f": {_shown(value)}" if isinstance(value, str) else ""


def _shown(text: str) -> str:
    text = public_uri(text).encode(errors="replace").decode()
    return repr(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…")


def _missing(location: Location, why: str) -> RowError:
    return RowError(ErrorCode.IMAGE_MISSING, f"{_shown(str(location))}: {why}")


def _forbidden(message: str) -> RowError:
    return RowError(ErrorCode.IMAGE_FORBIDDEN, message)
