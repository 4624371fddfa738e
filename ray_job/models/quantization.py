"""Weights in 8 bits: `model.quantization`, by torchao at load, and checkpoints that come quantised.

Only weights are quantised, activations are not: a product takes a row's own activations and the weights, so that an
answer depends on its row alone, as without. Only quantising itself imports torchao, and torch with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ray_job.errors import ModelError, first_line
from ray_job.models.json_file import read_json_object
from ray_job.models.quiet import quiet_torchao
from ray_job.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Quantization: TypeAlias = Literal["int8", "fp8"]

_FIELD = "model.quantization"
_INSTALL = "pip install 'ray_job[quantization]'"
ORIGINAL = "use the original checkpoint, with model.quantization: int8 to save memory"


def quantize_layers(layers: nn.Module, kind: Quantization, dtype: torch.dtype, device: str | torch.device) -> None:
    """Quantises the weight of each linear layer below a module, in place: a scale a row, the largest value its end.

    One at a time, so that a GPU need not hold the whole weights first.

    Args:
        layers: those of the decoder, without embeddings, head and vision tower.
        kind: `int8`: 255 equal steps; `fp8`: floats with 3 bits after the point (e4m3).
        dtype: that the layers compute in.
        device: where they compute.

    Raises:
        ModelError: torchao is not installed or too old, or there are no linear layers.
    """
    from torch import nn

    with quiet_torchao():
        try:
            from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
            from torchao.quantization import quantize_ as quantize_layer
        except ImportError as error:
            raise ModelError(f"{_FIELD} needs the package torchao ({first_line(error)}): {_INSTALL}") from None
    config = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[kind]
    found = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    if not found:
        raise ModelError(
            f"{_FIELD}: the decoder of this model has no linear layers that could be quantised; leave it out"
        )
    for layer in found:
        weight = layer.weight.detach().to(device=device, dtype=dtype)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        quantize_layer(layer, config(set_inductor_config=False))  # what is compiled elsewhere is not its business


def is_quantized(weight: Tensor) -> bool:
    """Whether a weight is one that `quantize_layers` made; `F.linear` takes it, operators of a layout do not."""
    return hasattr(weight, "__tensor_flatten__")


def stored_bytes(weight: Tensor) -> int:
    """What a weight takes in memory, its scales included."""
    if not is_quantized(weight):
        return weight.nbytes
    names, _ = weight.__tensor_flatten__()  # type: ignore[attr-defined]
    return sum(stored_bytes(getattr(weight, name)) for name in names)


def quantization_method(config: Mapping[str, Any]) -> str | None:
    """How a checkpoint's weights are quantised, by its config.json; None where they are not."""
    found = config.get("quantization_config")
    if not found:
        return None
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    return str(method or "an unknown method")


def refuse_quantized(file: Path, config: Mapping[str, Any]) -> None:
    """For a model whose code reads plain weights only.

    Args:
        file: its config.json.
        config: what that holds.

    Raises:
        ModelError: the checkpoint is a quantised one.
    """
    method = quantization_method(config)
    if method is not None:
        raise ModelError(
            f"{file}: quantization_config says that the weights are quantised by {method}, and this model is read from "
            f"plain weights; {ORIGINAL}"
        )


def check_once(model: ModelSpec, file: Path) -> None:
    """Before any weights are read.

    Args:
        model: whose weights are to be changed at load, or not.
        file: its config.json.

    Raises:
        ModelError: they are to be changed, and are quantised already.
    """
    changes = [name for name in ("adapter", "quantization") if getattr(model, name) is not None]
    method = quantization_method(read_json_object(file)) if changes and file.exists() else None
    if method is not None:
        raise ModelError(
            f"model.{changes[0]}: {file} says that the weights are quantised already, by {method}; leave "
            f"model.{changes[0]} out, or {ORIGINAL}"
        )
