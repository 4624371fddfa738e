"""The one reader of a model folder's JSON files: any file that is not what it must be is a ModelError with its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray_job.errors import ModelError

_MAX_BYTES = 256 * 2**20  # the largest known tokenizer.json has some 35 MB
_BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_ADVICE = "download the model's files again, or write it anew as UTF-8"


def read_json_object(path: Path, absent: str = "give the folder of a whole model") -> dict[str, Any]:
    """The JSON object in a file of UTF-8, with or without a byte order mark.

    Args:
        path: of the file.
        absent: what to do where there is none.

    Raises:
        ModelError: there is no such file, it cannot be read, or it holds anything but one JSON object.
    """
    text = _text(path, absent)
    try:
        found = json.loads(text)
        if "\\ud" in text.lower():  # an escape may spell half a character, which no UTF-8 can hold
            json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ModelError(f"{path} cannot be read as JSON: {where}: {error.msg}; {_ADVICE}") from None
    except RecursionError:
        raise ModelError(f"{path} cannot be read as JSON: brackets are nested too deeply; {_ADVICE}") from None
    except UnicodeEncodeError as error:
        raise ModelError(
            f"{path} cannot be read as JSON: {error.object[error.start]!a} is half a character; {_ADVICE}"
        ) from None
    except ValueError as error:  # a number of thousands of digits
        raise ModelError(f"{path} cannot be read as JSON: {error}; {_ADVICE}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a JSON {json_type(found)}, not a JSON object; {_ADVICE}")
    return found


def json_type(value: object) -> str:
    """What JSON calls a value."""
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "number", float: "number", list: "array", tuple: "array", dict: "object"}
    return names.get(type(value), "null")


def _text(path: Path, absent: str) -> str:
    try:
        if path.exists() and not path.is_file():
            raise ModelError(f"{path} is not a regular file; {_ADVICE}")
        if path.stat().st_size > _MAX_BYTES:
            raise ModelError(f"{path} is over {_MAX_BYTES // 2**20} MiB, too large for a model's JSON; {_ADVICE}")
        content = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist; {absent}") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}; check the folder and its rights") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = _BYTE_ORDER_MARKS.get(content[:2])
        what = f"it is {encoding}, not UTF-8" if encoding else f"it is not UTF-8 text (byte {error.start})"
        raise ModelError(f"{path} cannot be read as JSON: {what}; {_ADVICE}") from None
