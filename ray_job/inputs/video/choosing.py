"""Which frames of a video are asked about, as times in it."""

from __future__ import annotations

from collections.abc import Sequence

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.video.open_video import Survey
from ray_job.spec import VideoSpec


def chosen_times(survey: Survey, spec: VideoSpec) -> Sequence[int]:
    """Times in µs, in order.

    Raises:
        RowError: VIDEO_EMPTY for none, VIDEO_UNREADABLE for more than `max_frames`.
    """
    end_us, every_us = survey.end_us, spec.every_us
    times: Sequence[int]
    if every_us is not None:
        times = range(0, end_us, every_us)
    elif spec.num_frames is not None:
        times = tuple((2 * index + 1) * end_us // (2 * spec.num_frames) for index in range(spec.num_frames))
    else:
        times = tuple(time for time in survey.times_us if time < end_us)
    if not times or end_us <= 0:
        raise RowError(ErrorCode.VIDEO_EMPTY, "the video has no frame that can be shown")
    if len(times) > spec.max_frames:
        text = (
            f"{len(times)} frames; video.max_frames is {spec.max_frames}. Raise it, or choose fewer with video.every_s"
        )
        raise RowError(ErrorCode.VIDEO_UNREADABLE, text)
    return times
