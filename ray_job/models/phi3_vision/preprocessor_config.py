"""How pictures are prepared for a model, read from `preprocessor_config.json`. Imports no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ray_job.errors import ModelError
from ray_job.models.json_file import read_json_object
from ray_job.models.phi3_vision.config_fields import FieldError, is_count, is_number, require

FILE = "preprocessor_config.json"
_MAX_CROPS = 4096

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Triple: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True)
class PreprocessorConfig:
    """The official values by default; mean and deviation by channel, of pixels in 0..1."""

    num_crops: int = 16
    image_mean: Triple = CLIP_MEAN
    image_std: Triple = CLIP_STD

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> PreprocessorConfig:
        """Reads the file in `folder`; a field that is absent or null has its official value.

        Raises ModelError if there is no such file, it is not a JSON object, or a field is not usable.
        """
        path = Path(folder) / FILE
        found = read_json_object(path, "give a folder that holds a Phi-3-Vision model")
        try:
            return cls(
                num_crops=_num_crops(found),
                image_mean=_triple(found, "image_mean", cls.image_mean),
                image_std=_triple(found, "image_std", cls.image_std, above=0.0),
            )
        except FieldError as error:
            raise ModelError(f"{path}: {error}") from None


def _num_crops(found: Mapping[str, Any]) -> int:
    value = found.get("num_crops")
    if value is None:
        return PreprocessorConfig.num_crops
    require(is_count(value, _MAX_CROPS), "num_crops", value, f"a whole number from 1 to {_MAX_CROPS}")
    return int(value)


def _triple(found: Mapping[str, Any], name: str, default: Triple, above: float = -math.inf) -> Triple:
    values = found.get(name)
    if values is None:
        return default
    is_right = isinstance(values, list) and len(values) == 3 and all(is_number(v) and v > above for v in values)
    require(is_right, name, values, "three numbers" + (f" above {above:g}" if above > -math.inf else ""))
    red, green, blue = map(float, values)
    return red, green, blue
