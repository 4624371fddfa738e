"""Pictures that stand in text: `data:` URIs, and base64 without anything around it.

Text is base64 of a picture if all of it is base64 and the bytes it stands for begin as a picture does. A path hardly
ever does: it would need the first letters of a picture, many more, and nowhere a dot. Base64 that is longer than any
path may also be of something that is known not to be a picture: the error then says what.
"""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.pictures.signatures import described, picture_format

MAX_PATH_CHARS = 4095
_LEAST_CHARS = 32
_HEAD_CHARS = 512
_MAX_MEDIA_CHARS = 1000  # before the comma of a data URI
_WHITESPACE = re.compile(r"\s+")
_SPACE_IN_LINE = re.compile(r"\w +\w")
_IS_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]++[=\s]*+")  # never tries again, so that no text takes long


def is_embedded(text: str) -> bool:
    """Whether a text holds its picture."""
    return is_data_uri(text) or is_base64_picture(text)


def is_data_uri(text: str) -> bool:
    """Whether it calls itself one."""
    return text[:_HEAD_CHARS].lstrip()[:5].lower() == "data:"


def is_base64_picture(text: str) -> bool:
    """Whether it is base64 of a picture, standard or URL-safe, with or without padding and line ends."""
    if len(text) < _LEAST_CHARS or _IS_BASE64.fullmatch(text[:_HEAD_CHARS].strip()) is None:
        return False
    head = _decoded(text[:_HEAD_CHARS], is_whole=len(text) <= _HEAD_CHARS)
    if head is None or (picture_format(head) is None and (len(text) <= MAX_PATH_CHARS or described(head) is None)):
        return False
    return _IS_BASE64.fullmatch(text) is not None


def base64_picture(text: str, max_bytes: int) -> bytes:
    """The bytes of a text that `is_base64_picture`.

    Raises:
        RowError: IMAGE_TOO_LARGE, or IMAGE_UNREADABLE where the end is missing.
    """
    num_chars = len(text) - sum(map(text.count, " \n\r\t="))
    check_size(num_chars * 3 // 4, max_bytes, "the base64 text")
    data = _decoded(text, is_whole=True)
    if data is None:
        raise RowError(
            ErrorCode.IMAGE_UNREADABLE,
            f"base64 of a picture, but {len(text)} characters are not a whole number of bytes",
        )
    return data


def data_uri_picture(uri: str, max_bytes: int) -> bytes:
    """The bytes of `data:image/png;base64,…`, with base64 as browsers take it, or of a percent-encoded picture.

    Raises:
        RowError: IMAGE_TOO_LARGE, IMAGE_UNREADABLE.
    """
    comma = uri.find(",", 0, _MAX_MEDIA_CHARS)
    media, payload = (uri[:comma].strip(), uri[comma + 1 :]) if comma >= 0 else ("", "")
    if re.split("[;:]", media.lower())[-1].strip() != "base64":
        return _percent_decoded(uri, payload)
    num_chars = len(payload) - sum(map(payload.count, " \n\r\t")) - 2 * payload.count("%")
    check_size(num_chars * 3 // 4 - 2, max_bytes, "the data URI")  # two may be padding
    try:
        text = unquote_to_bytes(payload).decode("ascii") if "%" in payload else payload
    except UnicodeDecodeError:
        text = "%"
    # A space within a line was a plus before some form was decoded: without it the picture would be another.
    data = None if _SPACE_IN_LINE.search(text) else _decoded(text, is_whole=True)
    if data is None:
        raise RowError(ErrorCode.IMAGE_UNREADABLE, "the data URI is not base64: characters of it are others, or lost")
    return data


def _percent_decoded(uri: str, payload: str) -> bytes:
    data = unquote_to_bytes(payload)
    if picture_format(data[:_HEAD_CHARS]) is None:
        what = described(data) if payload else None
        text = what or f"not of the form data:image/…;base64,…: {uri[:40]!r}"
        raise RowError(ErrorCode.IMAGE_UNREADABLE, text)
    return data


def _decoded(text: str, is_whole: bool) -> bytes | None:
    """Base64 without its niceties; None: the characters are not a whole number of bytes."""
    letters = _WHITESPACE.sub("", text).rstrip("=").replace("-", "+").replace("_", "/")
    if not is_whole:
        letters = letters[: len(letters) // 4 * 4]
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def check_size(num_bytes: int, max_bytes: int, what: str) -> None:
    """Raises RowError with IMAGE_TOO_LARGE for more bytes than are allowed."""
    if num_bytes > max_bytes:
        raise RowError(
            ErrorCode.IMAGE_TOO_LARGE, f"{what} has {num_bytes} bytes; limits.max_image_bytes is {max_bytes}"
        )
