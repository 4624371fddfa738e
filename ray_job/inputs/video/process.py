"""The process that videos are opened in: FFmpeg's decoders are native code, and files of anyone are fed to them."""

from __future__ import annotations

import atexit
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.isolation.process import IsolatedProcess
from ray_job.inputs.video.clock import shown_s
from ray_job.inputs.video.open_video import OpenVideo
from ray_job.spec import LimitsSpec, VideoSpec


class VideoProcess(IsolatedProcess):
    """Opens one video at a time."""

    child = "ray_job.inputs.video.child"

    @contextmanager
    def video(
        self, file: Any, spec: VideoSpec, limits: LimitsSpec, key: Hashable = None, deadline_s: float | None = None
    ) -> Iterator[OpenVideo]:
        """A video, opened unless it is the one that is open still.

        Args:
            file: a `pyarrow.NativeFile` with random access, open until the `with` ends.
            spec: which stream, and the limits on time and memory.
            limits: on a frame's size.
            key: the same for the same video; None: open it anew.
            deadline_s: of each step; by default that of the spec.

        Raises:
            RowError: VIDEO_UNREADABLE, VIDEO_EMPTY, IMAGE_TOO_LARGE, DEADLINE; OUT_OF_MEMORY or OSError where trying
                again may help.
        """
        max_bytes = spec.max_memory_mib * 2**20
        request = {"stream": spec.stream, "max_pixels": limits.max_pixels, "max_bytes": max_bytes}
        key = None if key is None else (key, spec.stream)
        with self.opened(file, request, key, deadline_s or spec.deadline_s):
            yield OpenVideo(self.ask)

    def doing(self, request: dict[str, Any]) -> str:
        """See `IsolatedProcess.doing`."""
        if request["do"] == "open":
            return "opened the video"
        return "looked through the video" if request["do"] == "step" else f"decoded {shown_s(request['time_us'])} s"

    def code(self, request: dict[str, Any]) -> ErrorCode:
        """See `IsolatedProcess.code`."""
        return ErrorCode.VIDEO_UNREADABLE if request["do"] in ("open", "step") else ErrorCode.FRAME_UNREADABLE

    def overdue(self, request: dict[str, Any], limit_s: float) -> RowError:
        """See `IsolatedProcess.overdue`."""
        what = {"open": "opening the video", "step": "a step through the video"}.get(request["do"])
        what = what or f"the frame at {shown_s(request['time_us'])} s"
        return RowError(ErrorCode.DEADLINE, f"{what} took longer than video.deadline_s, {limit_s:g} s")


@cache
def shared_process() -> VideoProcess:
    """The one of this process, started when first used and kept."""
    process = VideoProcess()
    atexit.register(process.close)
    return process
