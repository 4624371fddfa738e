"""The process that videos are opened and decoded in, for `process.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.isolation.child import serve
from ray_job.inputs.isolation.wire import BlockFile
from ray_job.inputs.video import survey
from ray_job.inputs.video.as_shown import Viewer
from ray_job.inputs.video.file import VideoFile
from ray_job.inputs.video.frames import FrameReader


class VideoOpener:
    """The video at hand, and what is asked about its frames."""

    def __init__(self) -> None:
        self._file: VideoFile | None = None
        self._reader: FrameReader | None = None
        self._viewer = Viewer(None)
        self._steps: Iterator[survey.Step] | None = None
        self._num_steps = 0

    def open(self, file: BlockFile, request: dict[str, Any]) -> dict[str, Any]:
        """Raises RowError as `VideoFile`."""
        if self._file is not None:
            self._file.close()
        self._file = self._reader = self._steps = None

        def from_its_beginning() -> BlockFile:
            file.seek(0)
            return file

        self._file = VideoFile(from_its_beginning, request["stream"], request["max_pixels"])
        self._viewer = Viewer(self._file.stream.sample_aspect_ratio)
        return {}

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Raises RowError as `FrameReader.at`."""
        file = self._file
        assert file is not None
        if request["do"] == "step":
            return self._step(file, request).to_dict(), b""
        if self._reader is None:
            self._reader = FrameReader(file)
        frame = self._reader.at(request["time_us"])
        width, height = self._viewer.size(frame)
        file.check_size(width, height)
        if request["do"] == "look":
            return {"size": [width, height], "is_interlaced": frame.interlaced_frame}, b""
        return {"size": [width, height]}, self._viewer.rgb(frame)

    def _step(self, file: VideoFile, request: dict[str, Any]) -> survey.Step:
        """The next step of a way through the file, which begins with number 0."""
        self._reader = None
        if request["number"] == 0:
            if request["by"] == "end" and (found := survey.tail(file)) is not None:
                return found
            if request["by"] == "scene":
                self._steps = survey.scenes(file, request["threshold"])
            else:
                self._steps = survey.packets(file, are_keys_wanted=request["by"] == "keyframes")
            self._num_steps = 0
        if self._steps is None or request["number"] != self._num_steps:
            raise RowError(ErrorCode.VIDEO_UNREADABLE, "the process that looked through the video died on its way")
        self._num_steps += 1
        return next(self._steps)


if __name__ == "__main__":
    serve(int(sys.argv[1]), VideoOpener())
