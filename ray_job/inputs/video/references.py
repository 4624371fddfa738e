"""References to a frame: `a/clip.mp4#t=12.5`, as media fragments name a time in seconds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ray_job.inputs.detection import SUFFIXES, by_content
from ray_job.inputs.video.clock import US, shown_s

_HEAD_BYTES = 1024
_DATA_CHARS = 5
_MARK = "#t="
_TIME = re.compile(r"(\d{1,9})(?:\.(\d{1,6}))?")
_SUFFIXES = (*SUFFIXES["video"], ".ts", ".mts")  # where a picture is expected, these are no TypeScript


def frame_reference(name: str, time_us: int) -> str:
    """What names a frame of a file."""
    return f"{name}{_MARK}{shown_s(time_us)}"


def split_frame(value: Any) -> tuple[str, int] | None:
    """The file and the time, in µs, that a picture's value names: a path, a URI, or a {bytes, path} struct of one.

    None for any other picture, also for `#t=` behind what is no time.
    """
    text = _path_of(value)
    if text is None:
        return None
    file, _, time = text.rpartition(_MARK)
    match = _TIME.fullmatch(time)
    if not file or match is None:
        return None
    return file, int(match[1]) * US + int((match[2] or "").ljust(6, "0"))


def is_video(value: Any) -> bool:
    """Whether a picture's value is a whole video: by the name of its file, or by its bytes."""
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if isinstance(data, bytes | bytearray | memoryview):
        return by_content(bytes(data[:_HEAD_BYTES])) == "video"
    text = _path_of(value)
    return text is not None and text.lower().endswith(_SUFFIXES)


def _path_of(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = None if value.get("bytes") is not None else value.get("path")
    return value if isinstance(value, str) and value[:_DATA_CHARS].lower() != "data:" else None
