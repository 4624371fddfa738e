"""Which architectures the demo's questions can be taught to, by name and by a folder's configuration."""

from __future__ import annotations

from pathlib import Path

from ray_job.demo.training.architecture import Architecture
from ray_job.errors import ModelError
from ray_job.models.json_file import read_json_object

ARCHITECTURES = ("phi3_vision", "llava_next")
_MODEL_TYPES = {"phi3_v": "phi3_vision", "llava_next": "llava_next"}  # of config.json


def architecture(name: str) -> Architecture:
    """One of `ARCHITECTURES`; imports what it needs."""
    if name == "phi3_vision":
        from ray_job.demo.training.phi3_vision import Phi3Vision

        return Phi3Vision()
    if name == "llava_next":
        from ray_job.demo.training.llava_next import LlavaNext

        return LlavaNext()
    raise KeyError(name)


def architecture_of(folder: Path) -> Architecture:
    """The architecture of a model's folder. Raises ModelError for a folder of none that training knows."""
    path = folder / "config.json"
    model_type = read_json_object(path, "give a folder that training wrote").get("model_type")
    if model_type not in _MODEL_TYPES:
        raise ModelError(f"{path}: model_type is {model_type!r}; training knows {', '.join(_MODEL_TYPES)}")
    return architecture(_MODEL_TYPES[model_type])
