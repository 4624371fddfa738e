"""A video that a process has open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from ray_job.spec import VideoSpec

Ask: TypeAlias = Callable[[dict[str, Any]], tuple[dict[str, Any], bytes]]
"""Sends the process a request and takes its answer."""


@dataclass(frozen=True, slots=True)
class Look:
    """A frame without its pixels."""

    width: int
    height: int
    is_interlaced: bool


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as a viewer shows it."""

    width: int
    height: int
    rgb: bytes  # height × width × 3


@dataclass(frozen=True, slots=True)
class Survey:
    """A video as a whole, in µs from its first frame on."""

    end_us: int
    is_cut: bool  # the file ends before what its header promises, or in the middle of a packet
    times_us: tuple[int, ...]  # of its key frames or scenes, where these were looked for


class OpenVideo:
    """Frames and what is known of all of them.

    Args:
        ask: the process that has it open.

    Every call raises RowError: FRAME_UNREADABLE or VIDEO_UNREADABLE, IMAGE_TOO_LARGE, DEADLINE; OUT_OF_MEMORY where
    trying again may help.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def frame(self, time_us: int) -> Frame:
        """The frame shown at a time."""
        answer, rgb = self._ask({"do": "frame", "time_us": time_us})
        width, height = answer["size"]
        return Frame(width, height, rgb)

    def look(self, time_us: int) -> Look:
        """The same frame's size: it is decoded, but becomes no picture."""
        answer, _ = self._ask({"do": "look", "time_us": time_us})
        width, height = answer["size"]
        return Look(width, height, answer["is_interlaced"])

    def survey(self, spec: VideoSpec) -> Survey:
        """Where it ends; and its key frames or scenes where the spec asks for these, for which all of it is read."""
        by = "keyframes" if spec.keyframes else "end" if spec.scene is None else "scene"
        times: set[int] = set()
        number = 0
        while True:
            step, _ = self._ask({"do": "step", "by": by, "threshold": spec.scene, "number": number})
            times.update(step["times_us"])
            if step["is_last"]:
                return Survey(step["end_us"], step["is_cut"], tuple(sorted(times)))
            number += 1
