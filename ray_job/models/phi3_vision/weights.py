"""Weights between a folder and the model: strict loading, saving, seeded initialisation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ray_job.errors import ModelError, first_line
from ray_job.models.phi3_vision.attention import Attention
from ray_job.models.phi3_vision.checkpoint import EMBEDDING, HEAD, SINGLE, Checkpoint
from ray_job.models.phi3_vision.configuration import FILE as CONFIG_FILE
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.preprocessor_config import FILE as PREPROCESSOR_FILE
from ray_job.models.phi3_vision.preprocessor_config import PreprocessorConfig
from ray_job.models.phi3_vision.vision_layer import PatchEmbeddings

__all__ = ["PROCESSOR_FILES", "init_weights", "load", "save"]

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
    """The model in `folder` in `dtype` on `device`, in eval mode. Memory holds the weights once, a tied head's too.

    With `tie_word_embeddings: true` the files may hold the token embedding, the head, or both if they are equal.

    Raises:
        ModelError: a file is absent or broken, or tensors do not fit: every missing, unexpected and wrongly shaped one
            is listed with its file.
    """
    path = Path(folder)
    model = _empty_model(path, attention)
    checkpoint = Checkpoint(path, model.state_dict(), model.config.tie_word_embeddings)
    weights = checkpoint.tensors(dtype, device)
    if model.config.tie_word_embeddings:
        weights[HEAD] = weights[EMBEDDING]
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_head()
    return model.eval()


def save(
    model: Phi3VisionModel,
    folder: str | os.PathLike[str],
    processor_folder: str | os.PathLike[str] | None = None,
) -> None:
    """Writes config.json and model.safetensors, and copies the processor's files from `processor_folder`.

    A tied head is written once, as the token embedding.

    The weights are written under another name and renamed, so that a broken save leaves no half file.
    Raises ModelError if `processor_folder` lacks tokenizer.json or preprocessor_config.json.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    if processor_folder is not None:
        _copy_processor(Path(processor_folder), path)
    model.config.save_pretrained(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors[HEAD]
    unfinished = path / f".{SINGLE}.tmp"
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.replace(path / SINGLE)


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


def _empty_model(folder: Path, attention: Attention) -> Phi3VisionModel:
    """The model that config.json describes, without memory for its weights."""
    config = Phi3VisionConfig.from_pretrained(folder)
    has_preprocessor = (folder / PREPROCESSOR_FILE).exists()
    preprocessor = PreprocessorConfig.from_pretrained(folder) if has_preprocessor else PreprocessorConfig()
    try:
        with torch.device("meta"), _Unfilled():
            return Phi3VisionModel(config, attention, preprocessor.image_mean, preprocessor.image_std)
    except (RuntimeError, OverflowError, MemoryError) as error:
        raise ModelError(
            f"{folder / CONFIG_FILE}: torch cannot hold a model of these sizes: {first_line(error)}; download the "
            "model's files again"
        ) from None


class _Unfilled(TorchFunctionMode):
    """Leaves new parameters unfilled: their values come from files. On `meta`, filling one loads torch's compiler."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def _copy_processor(source: Path, target: Path) -> None:
    for name in PROCESSOR_FILES:
        if (source / name).is_file():
            if source.resolve() != target.resolve():
                shutil.copyfile(source / name, target / name)
        elif name in ("tokenizer.json", "preprocessor_config.json"):
            raise ModelError(f"{source / name} does not exist; a processor cannot be read without it")
