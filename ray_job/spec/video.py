"""Which frames of videos are asked about, and what one may cost."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from ray_job.spec.section import Section

_CHOICES = ("every_s", "num_frames", "keyframes", "scene")


class VideoSpec(Section):
    """Videos: which frames, and how many of them are a row. Needs the extra `ray_job[video]` where workers run."""

    every_s: float | None = Field(
        None,
        ge=0.001,
        description="A frame every so many seconds, from the first one on. Default: 1, where nothing else chooses.",
    )
    num_frames: int | None = Field(
        None, ge=1, le=100_000, description="So many frames, in the middle of stretches of equal length."
    )
    keyframes: bool = Field(
        False, description="The frames that stand for themselves in the file; for this all of a file is read first."
    )
    scene: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Frames that differ from the last one chosen by more than this: the mean difference of grey from "
        "0 to 1, 0.1 for cuts. For this all of a video is decoded first.",
    )
    frames_per_row: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="A row is a clip of at most so many of the chosen frames, as its pictures. "
        "Default: each frame is a row.",
    )
    stride: int | None = Field(
        None,
        ge=1,
        description="Chosen frames from the start of one clip to the next. Default: frames_per_row, so that clips "
        "do not overlap.",
    )
    stream: int | None = Field(
        None,
        ge=0,
        description="Which of several video streams, from 0. Default: the one that FFmpeg takes for the main one.",
    )
    deadline_s: float = Field(
        30.0,
        gt=0,
        description="Seconds that opening a video, and decoding up to a frame, may take; what takes longer is "
        "an error.",
    )
    max_frames: int = Field(100_000, ge=1, description="Frames chosen of one video; one with more is an error, whole.")
    max_memory_mib: int = Field(
        2048, ge=256, description="Memory that decoding a video may take, in a process of its own."
    )

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        set_ = [name for name in _CHOICES if getattr(self, name)]
        if len(set_) > 1:
            raise ValueError(f"{' and '.join(set_)} each choose the frames; leave all but one out")
        if self.stride is not None and self.frames_per_row is None:
            raise ValueError("stride goes with frames_per_row, which is not set")
        return self

    @property
    def every_us(self) -> int | None:
        """`every_s` in whole microseconds, settled; None where something else chooses."""
        if self.every_s is not None:
            return round(self.every_s * 1_000_000)
        return None if self.num_frames or self.keyframes or self.scene else 1_000_000
