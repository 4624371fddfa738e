"""Which frames videos have: from the ends of their files, several videos at once, each by its process."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from ray_job.errors import ErrorCode, RowError, Stage, is_retryable
from ray_job.inputs.files import InputFile
from ray_job.inputs.isolation.files import opened_file
from ray_job.inputs.isolation.side_by_side import each_file
from ray_job.inputs.video.choosing import chosen_times
from ray_job.inputs.video.clock import shown_s
from ray_job.inputs.video.open_video import OpenVideo
from ray_job.inputs.video.process import VideoProcess
from ray_job.spec import LimitsSpec, VideoSpec
from ray_job.storage.places import Location
from ray_job.storage.retrying import Retrying


@dataclass(frozen=True, slots=True)
class Video:
    """A video, or why it has no frames."""

    name: str
    location: Location
    error: RowError | None = None


@dataclass(frozen=True, slots=True)
class Counted:
    """A video with the times, in µs, of its frames that are asked about."""

    video: Video
    times_us: Sequence[int] = ()
    end_us: int = 0
    is_interlaced: bool = False
    cut: RowError | None = None  # set where the file ends too early


def count_videos(files: Sequence[InputFile], spec: VideoSpec, limits: LimitsSpec) -> Generator[Counted]:
    """Each file as a video, in order; nothing is looked at long before it is asked for.

    Args:
        files: of any size; only pieces are read, unless key frames or scenes are asked for.
        spec: which frames, and the limits.
        limits: on frames and on attempts.
    """

    def count(process: VideoProcess, file: InputFile) -> Counted:
        try:
            return Retrying(limits.max_attempts)(lambda: _counted(process, file, spec, limits), is_retryable)
        except RowError as error:
            return Counted(Video(file.name, file.location, RowError(error.code, error.message, Stage.READ)))

    return each_file(files, VideoProcess, count)


def _counted(process: VideoProcess, file: InputFile, spec: VideoSpec, limits: LimitsSpec) -> Counted:
    with opened_file(file.location, ErrorCode.VIDEO_UNREADABLE) as handle:
        if handle.size() == 0:
            raise RowError(ErrorCode.VIDEO_EMPTY, "the video has zero bytes")
        with process.video(handle, spec, limits) as video:
            is_interlaced = _is_interlaced(video)
            survey = video.survey(spec)
    times = chosen_times(survey, spec)
    cut = None
    if survey.is_cut:
        end = shown_s(survey.end_us)
        text = f"the file breaks off at {end} s of its video, before its end; the frames up to there are answered"
        cut = RowError(ErrorCode.VIDEO_TRUNCATED, text, Stage.READ)
    return Counted(Video(file.name, file.location), times, survey.end_us, is_interlaced, cut)


def _is_interlaced(video: OpenVideo) -> bool:
    """As far as the first frame tells; it may be damaged, and the others good."""
    try:
        return video.look(0).is_interlaced
    except RowError as error:
        if error.code != ErrorCode.FRAME_UNREADABLE:
            raise
        return False
