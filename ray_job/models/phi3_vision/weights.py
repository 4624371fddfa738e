"""Weights between a folder and the model: strict loading from safetensors, saving, seeded initialisation.

Only safetensors are read; a pickle (.bin, .pt) is refused, as loading one can execute code.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ray_job.errors import ModelError
from ray_job.models.hub import resolve
from ray_job.models.phi3_vision.attention import Attention
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig
from ray_job.models.phi3_vision.crops import CLIP_MEAN, CLIP_STD
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.vision_layer import PatchEmbeddings

__all__ = ["PROCESSOR_FILES", "init_weights", "load", "resolve", "save"]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth")
PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
)


def load(
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    attention: Attention = "sdpa",
) -> Phi3VisionModel:
    """The model in `folder` in `dtype` on `device`, in eval mode. Memory holds the weights once.

    Raises ModelError that lists every missing, unexpected and wrongly shaped tensor with its file.
    """
    path = Path(folder)
    mean, std = _normalisation(path)
    with torch.device("meta"):
        model = Phi3VisionModel(Phi3VisionConfig.from_pretrained(path), attention, mean, std)
    files = _weight_files(path)
    _check_tensors(path, files, model.state_dict())
    weights = {}
    for file in files:
        with safe_open(file, framework="pt", device=str(device)) as opened:
            for name in opened.keys():  # noqa: SIM118 - safe_open is no dict
                weights[name] = opened.get_tensor(name).to(dtype)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


def save(
    model: Phi3VisionModel,
    folder: str | os.PathLike[str],
    processor_folder: str | os.PathLike[str] | None = None,
) -> None:
    """Writes config.json and model.safetensors, and copies the processor's files from `processor_folder`.

    The weights are written under another name and renamed, so that a broken save leaves no half file.
    Raises ModelError if `processor_folder` lacks tokenizer.json or preprocessor_config.json.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    if processor_folder is not None:
        _copy_processor(Path(processor_folder), path)
    model.config.save_pretrained(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    unfinished = path / f".{_SINGLE}.tmp"
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.replace(path / _SINGLE)


@torch.no_grad()
def init_weights(model: Phi3VisionModel, seed: int) -> None:
    """Fresh weights for a new model; the same seed gives the same weights on any device.

    Matrices and embeddings are normal with the configuration's `initializer_range`, the class embedding
    with 1/√width as in CLIP; biases and the separators are 0, norms 1.
    """
    generator = torch.Generator().manual_seed(seed)
    std = model.config.initializer_range
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.zero_()
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv2d)):
            _fill_normal(module.weight, std, generator)
        elif isinstance(module, PatchEmbeddings):
            _fill_normal(module.class_embedding, len(module.class_embedding) ** -0.5, generator)
        elif "Norm" in type(module).__name__:
            weight = module.weight
            assert isinstance(weight, Tensor)
            weight.fill_(1.0)
    pictures = model.model.vision_embed_tokens
    pictures.glb_GN.zero_()
    pictures.sub_GN.zero_()


def _fill_normal(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    # Drawn on the CPU in float32, whatever the model is in.
    parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: one, or those its index names."""
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    index = folder / _INDEX
    if index.is_file():
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise ModelError(f"{index} names files that are not there: {', '.join(missing) or 'none at all'}")
        return [folder / name for name in names]
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder} holds weights only as {', '.join(pickles)}. These are pickles, which can execute code "
            f"when they are read; convert them to {_SINGLE} with safetensors.torch.save_file"
        )
    raise ModelError(f"{folder} holds neither {_SINGLE} nor {_INDEX}")


def _check_tensors(folder: Path, files: Iterable[Path], expected: Mapping[str, Tensor]) -> None:
    found: dict[str, str] = {}
    problems = []
    for file in files:
        for name, shape in _shapes(file).items():
            found[name] = file.name
            if name not in expected:
                problems.append(f"unexpected in {file.name}: {name} {shape}")
            elif shape != tuple(expected[name].shape):
                problems.append(f"shape in {file.name}: {name} is {shape}, not {tuple(expected[name].shape)}")
    problems += [f"missing: {name} {tuple(expected[name].shape)}" for name in expected if name not in found]
    if problems:
        raise ModelError(
            f"{folder}: {len(problems)} tensors do not fit config.json; use the weights and the config.json of "
            "one model\n" + "\n".join(f"  - {problem}" for problem in problems)
        )


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a complete safetensors file ({error}); fetch it again") from error


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and deviation the processor beside the weights asks for; CLIP's where it has none."""
    path = folder / "preprocessor_config.json"
    found = _read_json(path) if path.is_file() else {}
    return tuple(found.get("image_mean", CLIP_MEAN)), tuple(found.get("image_std", CLIP_STD))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds {type(found).__name__}, not a JSON object")
    return found


def _copy_processor(source: Path, target: Path) -> None:
    for name in PROCESSOR_FILES:
        if (source / name).is_file():
            if source.resolve() != target.resolve():
                shutil.copyfile(source / name, target / name)
        elif name in ("tokenizer.json", "preprocessor_config.json"):
            raise ModelError(f"{source / name} does not exist; a processor cannot be read without it")
