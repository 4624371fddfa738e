"""The frame that a video shows at a time, found by time stamps, by seeking where it is far, and never by counting.

It is the one that a player shows: the last whose time stamp has come, the same whether it was reached by decoding on or
by seeking. Frames that FFmpeg could only make up in part are errors: a packet that is marked, does not decode, or of
which the decoder complains, spoils all frames from it up to the next key frame.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import av
import av.logging
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.video.clock import shown_s
from ray_job.inputs.video.file import VideoFile

_FIRST_GAP_S = 2  # a likely distance of key frames, until one is seen
_BACK_S = 1  # how far before a place that was missed the next try begins; doubled each time
_FRAME_A_PACKET = ("h264", "hevc")  # others hold frames that are not shown
_KEPT_PACKETS = 512  # of which the places are known, more than any decoder holds back


@dataclass(frozen=True, slots=True)
class Decoded:
    """A frame, and where it came."""

    frame: VideoFrame
    pts: int
    number: int  # of its packet, in the order of decoding
    key: int  # number of the key frame that it follows
    key_pts: int


class FrameReader:
    """Frames of an open video, the cheaper the closer one is behind the one before.

    Args:
        file: which nothing else reads meanwhile.
    """

    def __init__(self, file: VideoFile) -> None:
        self._file = file
        self._frames: Iterator[Decoded] | None = None
        self._current: Decoded | None = None
        self._next: Decoded | None = None
        self._longest_gap = round(_FIRST_GAP_S / file.clock.time_base)  # ticks between key frames
        # Of packets since the last jump: numbers and time stamps of damaged ones (what was lost before one is half a
        # number less), and the number by time stamp.
        self._bad: list[tuple[float, int | None]] = []
        self._numbers: OrderedDict[int, int] = OrderedDict()
        self._failure = ""  # why reading ended, where it did not at the end

    def at(self, time_us: int) -> VideoFrame:
        """The frame shown at a time.

        Raises:
            RowError: FRAME_UNREADABLE where it is damaged, or the frames end before.
        """
        ticks = self._file.clock.ticks(time_us)
        current = self._moved_to(ticks)
        if current is None:
            raise _unreadable(f"no frame can be decoded at {shown_s(time_us)} s{self._failure}")
        if self._next is None and ticks > (ends := self._end(current)):
            text = f"the frames end at {shown_s(self._file.clock.time_us(ends))} s, before {shown_s(time_us)} s"
            raise _unreadable(text + self._failure)
        if self.is_damaged(current):
            raise _unreadable(f"the video is damaged at {shown_s(time_us)} s: what it shows is made up in part")
        if self._is_lost(ticks, current):
            raise _unreadable(f"the video is damaged at {shown_s(time_us)} s: its frame is lost")
        return current.frame

    def _moved_to(self, ticks: int) -> Decoded | None:
        if self._current is None or ticks < self._current.pts or self._is_far(ticks):
            self._seek(ticks)
        while self._next is not None and self._next.pts <= ticks:
            self._advance()
        return self._current

    def all(self) -> Iterator[Decoded]:
        """Every frame from the first on, also damaged ones; `at` begins anew afterwards."""
        self._seek(self._file.clock.start)
        while self._current is not None:
            yield self._current
            self._advance()

    def is_damaged(self, decoded: Decoded) -> bool:
        """Whether a packet is that it is made of; known once the next frame is there.

        Packets that follow a key frame and are shown before it have no part in what comes after it.
        """
        first, key_pts = decoded.key, decoded.key_pts
        bad = (pts for number, pts in self._bad if first <= number <= decoded.number)
        return any(pts is None or pts >= key_pts for pts in bad)

    def _is_lost(self, ticks: int, current: Decoded) -> bool:
        """Whether another frame than the current one was shown, and is not there."""
        if self._next is None or ticks < self._end(current):
            return False
        if any(current.number < number <= self._next.number for number, _ in self._bad):
            return True
        if self._file.stream.codec_context.name not in _FRAME_A_PACKET:
            return False
        is_gap = self._next.pts - current.pts > self._file.frame_ticks * 3 // 2  # a field is no frame
        return is_gap and any(current.pts < pts <= ticks for pts in self._numbers)

    def _end(self, decoded: Decoded) -> int:
        return decoded.pts + (decoded.frame.duration or self._file.frame_ticks)

    def _is_far(self, ticks: int) -> bool:
        """Whether a jump is likely to be cheaper than decoding on."""
        if self._next is None:
            return False
        index = self._file.stream.index_entries
        if len(index) > 1:
            place = index.search_timestamp(ticks, backward=True)
            if place >= 0 and place < len(index) - 1:
                return bool(index[place].timestamp > self._next.pts)
        return ticks - self._next.pts > self._longest_gap

    def _seek(self, ticks: int) -> None:
        """Goes to a key frame at or before a place; where FFmpeg lands behind it, to an earlier one."""
        back, start = 0, self._file.clock.start
        while True:
            target = max(start, ticks - back)
            try:
                self._file.container.seek(target, stream=self._file.stream, backward=True)
            except av.error.FFmpegError:
                self._file.reopen()
                target = start
            self._begin()
            if target <= start or (self._current is not None and self._current.pts <= ticks):
                break
            back = max(back * 2, round(_BACK_S / self._file.clock.time_base))
        if self._current is None or self._current.pts > max(ticks, start):
            self._file.reopen()  # some cannot even go back to their beginning
            self._begin()

    def _begin(self) -> None:
        self._bad.clear()
        self._numbers.clear()
        self._failure = ""
        self._frames = self._decoded()
        self._current = self._next = None
        self._advance()
        self._advance()

    def _advance(self) -> None:
        assert self._frames is not None
        self._current, self._next = self._next, next(self._frames, None)

    def _decoded(self) -> Iterator[Decoded]:
        """Frames from where the container is, in the order they are shown."""
        numbers = self._numbers
        last_pts, key, key_pts = None, 0, None
        for number, packet, frames in self._packets():
            if packet.pts is not None:
                numbers[packet.pts] = number
                if len(numbers) > _KEPT_PACKETS:
                    numbers.popitem(last=False)
            for frame in frames:
                pts = frame.pts if frame.pts is not None else frame.dts
                if pts is None or (last_pts is not None and pts <= last_pts):
                    continue
                own = numbers.get(pts, number)
                if frame.is_corrupt:
                    self._bad.append((own, pts))
                if frame.key_frame:
                    if key_pts is not None:
                        self._longest_gap = max(self._longest_gap, pts - key_pts)
                    self._bad = [each for each in self._bad if each[0] >= key]
                    key, key_pts = own, pts
                last_pts = pts
                yield Decoded(frame, pts, own, key, pts if key_pts is None else key_pts)

    def _packets(self) -> Iterator[tuple[int, Packet[VideoStream], list[VideoFrame]]]:
        """Packets and what they let out, numbered; those that are damaged are noted."""
        number = 0
        with av.logging.Capture() as said:
            try:
                for number, packet in enumerate(self._file.container.demux(self._file.stream)):
                    if packet.is_corrupt:
                        self._bad.append((number, packet.pts))
                    if said:  # by the demuxer, which lost something before
                        self._bad += [(number - 1, None), (number - 0.5, None)]
                        said.clear()
                    try:
                        frames = packet.decode()
                    except av.error.FFmpegError:
                        frames = []
                        self._bad.append((number, packet.pts))
                    if said:
                        self._bad.append((number, packet.pts))
                        said.clear()
                    yield number, packet, [each for each in frames if isinstance(each, VideoFrame)]
            except av.error.FFmpegError as error:
                self._failure = f": {error.strerror}"
                self._bad.append((number + 1, None))


def _unreadable(text: str) -> RowError:
    return RowError(ErrorCode.FRAME_UNREADABLE, text)
