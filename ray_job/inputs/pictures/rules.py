"""How pictures are read: as a viewer shows them or as they are stored, and whether their last bytes may be missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from ray_job.spec import InputSpec

Rgb = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class PictureRules:
    """What `input.pictures`, `input.background` and `input.truncated` say."""

    are_as_shown: bool = True
    background: Rgb = (255, 255, 255)  # under what is transparent
    accept_truncated: bool = False

    @classmethod
    def of(cls, spec: InputSpec) -> Self:
        """The rules of a job."""
        return cls(spec.pictures == "as_shown", spec.background_rgb, spec.truncated == "accept")
