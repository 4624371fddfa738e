"""Which architectures the demo's questions can be taught to, by name and by a folder's configuration."""

from __future__ import annotations

from pathlib import Path

from ray_job.demo.training.architecture import Architecture
from ray_job.models.json_file import read_json_object

ARCHITECTURES = ("phi3_vision", "llava_next")


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
    """The architecture of a model's folder. Raises ModelError for a folder without config.json."""
    model_type = read_json_object(folder / "config.json", "give a folder that training wrote").get("model_type")
    return architecture("phi3_vision" if model_type == "phi3_v" else "llava_next")
