"""A video file that FFmpeg has open: which of its streams is meant, and its clock.

Only containers on a list are opened. What is read is the one file that was given: FFmpeg may open no other, whatever a
playlist in it names.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import av.logging
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.video.clock import US, Clock

# Playlists, lists of files and devices are not among them.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mxf,nut,ivf,wtv,dv,rm,gif,h264,hevc,av1,obu,"
    "mpegvideo,m4v,mjpeg"
)
_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "pipe", "enable_drefs": "0"}
_BUFFER_BYTES = 64 * 2**10
_NO_TIMES = "its frames have no time stamps; put it into a container: ffmpeg -i FILE -c copy FILE.mp4"

# What a decoder says of damage that it hides is counted, and shown nowhere.
av.logging.set_level(av.logging.ERROR)
av.logging.set_skip_repeated(False)


class VideoFile:
    """An open video.

    Args:
        make_file: the file, seekable, from its beginning; asked again where FFmpeg cannot seek back.
        stream: which of the video streams, from 0; None: the one FFmpeg takes for the main one.
        max_pixels: of a frame.

    Raises:
        RowError: VIDEO_UNREADABLE, VIDEO_EMPTY, IMAGE_TOO_LARGE.
    """

    def __init__(self, make_file: Callable[[], Any], stream: int | None, max_pixels: int) -> None:
        self._make_file, self._stream, self._max_pixels = make_file, stream, max_pixels
        self.container, self.stream = self._opened()
        self.frame_ticks = _frame_ticks(self.stream)
        self.clock = Clock(self._start(), _time_base(self.stream))

    def reopen(self) -> None:
        """Begins anew."""
        self.container.close()
        self.container, self.stream = self._opened()

    def close(self) -> None:
        """Lets go of it."""
        self.container.close()

    def check_size(self, width: int, height: int) -> None:
        """Raises RowError IMAGE_TOO_LARGE for a frame of too many pixels."""
        if width * height > self._max_pixels:
            text = f"the video has {width} × {height} pixels; limits.max_pixels is {self._max_pixels}"
            raise RowError(ErrorCode.IMAGE_TOO_LARGE, text)

    def _opened(self) -> tuple[InputContainer, VideoStream]:
        try:
            container = av.open(self._make_file(), "r", options=dict(_OPTIONS), buffer_size=_BUFFER_BYTES)
        except av.error.InvalidDataError:
            raise _unreadable("no video that FFmpeg knows, or cut off where it says what it holds") from None
        except av.error.ArgumentError:
            raise _unreadable("no container of videos: playlists and lists of files are not followed") from None
        except av.error.FFmpegError as error:
            raise _unreadable(error.strerror or type(error).__name__) from None
        try:
            stream = self._chosen(container)
            self.check_size(stream.codec_context.width, stream.codec_context.height)
        except RowError:
            container.close()
            raise
        stream.codec_context.thread_count = 1  # workers stand side by side; and damage is told of the packet it is in
        return container, stream

    def _chosen(self, container: InputContainer) -> VideoStream:
        streams = [each for each in container.streams.video if not each.disposition & Disposition.attached_pic]
        if not streams:
            others = ", ".join(sorted({each.type for each in container.streams} - {"video"})) or "nothing"
            raise RowError(ErrorCode.VIDEO_EMPTY, f"there is no video stream; the file holds {others}")
        if self._stream is not None and self._stream >= len(streams):
            text = f"video.stream is {self._stream}, and the file has {len(streams)} video streams, counted from 0"
            raise RowError(ErrorCode.VIDEO_EMPTY, text)
        best = container.streams.best("video")
        chosen = streams[self._stream or 0] if self._stream is not None or best not in streams else best
        assert isinstance(chosen, VideoStream)
        if chosen.codec_context is None:
            raise _unreadable("FFmpeg has no decoder for it")
        return chosen

    def _start(self) -> int:
        """Ticks of the first frame."""
        if self.stream.start_time is not None:
            return self.stream.start_time
        try:
            for packet in self.container.demux(self.stream):
                if packet.pts is not None:
                    self.reopen()
                    return packet.pts
                if packet.size:
                    raise _unreadable(_NO_TIMES)
        except av.error.FFmpegError as error:
            raise _unreadable(error.strerror or type(error).__name__) from None
        raise RowError(ErrorCode.VIDEO_EMPTY, "the video stream has no frame")

    @property
    def claimed_end(self) -> tuple[int | None, bool]:
        """Ticks where the header says that it ends, and whether that is said of this stream, not of the whole file."""
        start, duration = self.stream.start_time, self.stream.duration
        if start is not None and duration is not None and duration > 0:
            return start + duration, True
        if self.container.duration is None or self.container.duration <= 0:
            return None, False
        end = Fraction((self.container.start_time or 0) + self.container.duration, US)
        return int(end / _time_base(self.stream)), False


def _time_base(stream: VideoStream) -> Fraction:
    if stream.time_base is None:
        raise _unreadable(_NO_TIMES)
    return stream.time_base


def _frame_ticks(stream: VideoStream) -> int:
    """How long a frame is shown where it does not say itself."""
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    return max(1, round(1 / rate / _time_base(stream)))


def _unreadable(text: str) -> RowError:
    return RowError(ErrorCode.VIDEO_UNREADABLE, text)
