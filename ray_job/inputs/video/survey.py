"""Where a video ends, and where its key frames and scenes are.

The end that a header claims is looked at: a file that was cut short often claims its old length. A look at the last
seconds is enough where they are there; where not, and for key frames and scenes, all of the file is gone through, in
steps that each take a bounded time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import av
import numpy as np
from av.packet import Packet

from ray_job.inputs.video.clock import US
from ray_job.inputs.video.file import VideoFile
from ray_job.inputs.video.frames import FrameReader

_TAIL_S = 2
_CUT_US = US  # a header that claims less than this too much may only have rounded
_STEP_PACKETS, _STEP_FRAMES = 4096, 128
_SIDE = 32  # pixels; scenes are compared in small grey pictures


@dataclass
class Ends:
    """What was seen of a file's last packets; in µs of the video's clock."""

    end_us: int = 0  # of the video
    last_us: int = 0  # of any stream
    is_broken: bool = False  # the last packet is not whole

    def see(self, file: VideoFile, packet: Packet[Any]) -> None:
        """Looks at a packet of any stream."""
        if packet.pts is None or packet.time_base is None:
            return
        is_video = packet.stream.index == file.stream.index
        ticks = packet.pts + (packet.duration or (file.frame_ticks if is_video else 0))
        scale = packet.time_base / file.clock.time_base
        end_us = file.clock.time_us(int(ticks * scale))
        self.last_us = max(self.last_us, end_us)
        if is_video:
            self.is_broken = packet.is_corrupt
            start_us = file.clock.time_us(packet.pts)
            self.end_us = max(self.end_us, start_us if packet.is_corrupt else end_us)


@dataclass
class Step:
    """What a step through a file has found; of the last one, the ends."""

    times_us: list[int] = field(default_factory=list)
    is_last: bool = False
    end_us: int = 0
    is_cut: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def tail(file: VideoFile) -> Step | None:
    """The ends, by a look at the last seconds; None where that does not tell. Moves the file."""
    claimed, _ = file.claimed_end
    if claimed is None:
        return None
    ends = Ends()
    before = max(file.clock.start, claimed - round(_TAIL_S / file.clock.time_base))
    try:
        file.container.seek(before, stream=file.stream, backward=True)
        for packet in file.container.demux():
            ends.see(file, packet)
    except av.error.FFmpegError:
        return None
    if ends.end_us == 0 or ends.is_broken or _is_cut(file, ends):
        return None
    return Step(is_last=True, end_us=ends.end_us)


def packets(file: VideoFile, are_keys_wanted: bool) -> Iterator[Step]:
    """Goes through all packets, for the ends, and for the times of key frames where they are wanted. Moves the file."""
    file.reopen()
    step, ends, num_packets = Step(), Ends(), 0
    try:
        for packet in file.container.demux():
            ends.see(file, packet)
            if are_keys_wanted and packet.is_keyframe and packet.pts is not None and _is_of(file, packet):
                step.times_us.append(max(0, file.clock.time_us(packet.pts)))
            num_packets += 1
            if num_packets % _STEP_PACKETS == 0:
                yield step
                step = Step()
    except av.error.FFmpegError:
        ends.is_broken = True
    yield _last(file, step, ends)


def scenes(file: VideoFile, threshold: float) -> Iterator[Step]:
    """Goes through all frames, for those that differ from the last one chosen by more than a threshold: the mean
    difference of grey, from 0 to 1. The first is chosen. Moves the file.
    """
    step, chosen, reader = Step(), None, FrameReader(file)
    for number, decoded in enumerate(reader.all(), start=1):
        if not reader.is_damaged(decoded):
            grey = decoded.frame.reformat(_SIDE, _SIDE, "gray", interpolation="AREA", threads=1).to_ndarray()
            if chosen is None or np.abs(grey - chosen.astype(np.int16)).mean() > threshold * 255:
                chosen = grey
                step.times_us.append(max(0, file.clock.time_us(decoded.pts)))
        if number % _STEP_FRAMES == 0:
            yield step
            step = Step()
    yield step
    yield from packets(file, are_keys_wanted=False)


def _last(file: VideoFile, step: Step, ends: Ends) -> Step:
    step.is_last, step.end_us, step.is_cut = True, ends.end_us, ends.is_broken or _is_cut(file, ends)
    return step


def _is_cut(file: VideoFile, ends: Ends) -> bool:
    """Whether the file ends long before the end that it claims."""
    claimed, is_of_stream = file.claimed_end
    if claimed is None:
        return False
    seen_us = ends.end_us if is_of_stream else ends.last_us
    return file.clock.time_us(claimed) - seen_us > _CUT_US


def _is_of(file: VideoFile, packet: Packet[Any]) -> bool:
    return bool(packet.stream.index == file.stream.index)
