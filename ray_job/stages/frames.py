"""Frames of videos among a row's pictures: which they are, and how they become pictures for the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pyarrow as pa
from PIL import Image

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.isolation.files import opened_file
from ray_job.inputs.pictures.references import place_of
from ray_job.inputs.source import Source
from ray_job.inputs.video.choosing import chosen_times
from ray_job.inputs.video.open_video import OpenVideo
from ray_job.inputs.video.process import shared_process
from ray_job.inputs.video.references import frame_reference, is_video, split_frame
from ray_job.spec import JobSpec
from ray_job.storage.places import parse_uri

_WEB = ("http", "https")


@dataclass(frozen=True, slots=True)
class FrameOf:
    """A frame of a video: of a file, by its reference, or of the bytes of one."""

    video: str | bytes
    time_us: int


class RowFrames:
    """Decodes the frames that rows name, the cheaper the closer one is behind the one before.

    Args:
        spec: which frames of a whole video, limits.
        source: says where relative paths start.
    """

    def __init__(self, spec: JobSpec, source: Source) -> None:
        self._spec, self._root = spec, source.image_root
        self._looked_at: str | None = None  # by `header_of`, and a frame's size there
        self._size = (0, 0)
        self._data, self._digest = b"", b""  # the bytes of a video at hand, and their hash

    def expanded(
        self, values: Sequence[Any], counts: Sequence[int], read: Callable[[Any], bytes], max_pictures: int
    ) -> tuple[list[Any], list[int]]:
        """A row's pictures with frames as `FrameOf`, each whole video as those that the spec chooses.

        Args:
            values: the row's pictures.
            counts: how many of them each part of its prompt became.
            read: the bytes of one.
            max_pictures: of a row.

        Returns:
            The pictures, and how many each part became.

        Raises:
            RowError: TOO_MANY_IMAGES; as `OpenVideo` and `read`.
        """
        found: list[Any] = []
        rest = iter(values)
        sizes = []
        for count in counts:
            before = len(found)
            for _ in range(count):
                found += self._frames(next(rest), read, max_pictures)
            sizes.append(len(found) - before)
        return found, sizes

    def _frames(self, value: Any, read: Callable[[Any], bytes], max_pictures: int) -> list[Any]:
        if (named := split_frame(value)) is not None:
            return [FrameOf(*named)]
        if not is_video(value):
            return [value]
        video = value if is_read_in_pieces(value) else read(value)
        if not isinstance(video, str | bytes):
            video = video["path"]
        with self._opened(video) as opened:
            times = chosen_times(opened.survey(self._spec.video), self._spec.video)
        if len(times) > max_pictures:
            text = f"{len(times)} frames of a video; limits.max_images is {max_pictures}. Set video.num_frames"
            raise RowError(ErrorCode.TOO_MANY_IMAGES, text)
        return [FrameOf(video, time_us) for time_us in times]

    def picture(self, frame: FrameOf) -> tuple[bytes, Image.Image]:
        """16 bytes that are equal for equal pictures, and the frame as RGB. Raises RowError as `OpenVideo.frame`."""
        with self._opened(frame.video) as opened:
            shown = opened.frame(frame.time_us)
        size = (shown.width, shown.height)
        digest = hashlib.blake2b(shown.rgb, digest_size=16, key=repr(size).encode()).digest()
        return digest, Image.frombytes("RGB", size, shown.rgb)

    def header_of(self, frame: FrameOf) -> tuple[bytes, tuple[int, int]]:
        """16 bytes that name the frame, and its size in pixels: that of the first frame asked for of its video."""
        name = frame.video if isinstance(frame.video, str) else self._digest_of(frame.video).hex()
        if self._looked_at != name:
            with self._opened(frame.video) as opened:
                look = opened.look(frame.time_us)
            self._looked_at, self._size = name, (look.width, look.height)
        digest = hashlib.blake2b(frame_reference(name, frame.time_us).encode(errors="replace"), digest_size=16)
        return digest.digest(), self._size

    @contextmanager
    def _opened(self, video: str | bytes) -> Iterator[OpenVideo]:
        if find_spec("av") is None:
            text = "the picture is of a video; install ray_job[video] on every machine: pip install 'ray_job[video]'"
            raise RowError(ErrorCode.VIDEO_UNREADABLE, text)
        spec, limits = self._spec.video, self._spec.limits
        deadline_s = min(spec.deadline_s, limits.row_deadline_s or spec.deadline_s)
        if isinstance(video, bytes):
            file = pa.BufferReader(video)
            with shared_process().video(file, spec, limits, self._digest_of(video), deadline_s) as opened:
                yield opened
            return
        location = place_of(video, self._root)
        with opened_file(location, ErrorCode.VIDEO_UNREADABLE) as file:
            if file.size() == 0:
                raise RowError(ErrorCode.VIDEO_EMPTY, f"{location}: the video has zero bytes")
            key = (str(location), file.size())
            with shared_process().video(file, spec, limits, key, deadline_s) as opened:
                yield opened

    def _digest_of(self, data: bytes) -> bytes:
        if data is not self._data:
            self._data, self._digest = data, hashlib.blake2b(data, digest_size=16).digest()
        return self._digest


def is_read_in_pieces(value: Any) -> bool:
    """Whether a picture's value is a video, or a frame of one, that is read where it lies instead of fetched whole."""
    if split_frame(value) is not None:
        return True
    path = value.get("path") if isinstance(value, dict) and value.get("bytes") is None else value
    return isinstance(path, str) and is_video(path) and (parse_uri(path) or ("",))[0] not in _WEB
