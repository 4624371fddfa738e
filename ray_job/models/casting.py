"""Weights kept in bfloat16 or float16 where the processor has no arithmetic for it, and computed with in float32.

On such a processor torch has no fast kernel for a product in bfloat16, and one in float32 is several times as fast
(figures in `bench/RESULTS.md`). So a model in bfloat16 keeps its matrices in it, which halves their memory, and casts
each to float32 for the product. Everything else is float32: activations, norms, keys and values. The answers are those
of a float32 model with the same, rounded weights, and a row's tokens do not depend on the other rows of a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Model = TypeVar("Model", bound=Any)

# By dtype, the instructions of which one makes torch's products fast; the names are those of `torch.cpu`.
_INSTRUCTIONS: Mapping[torch.dtype, tuple[str, ...]] = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}


def computes_in(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products in `dtype` are fast on this device. True where torch cannot tell."""
    if device.type != "cpu" or dtype not in _INSTRUCTIONS:
        return True
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch
        return True
    capabilities = torch.cpu.get_capabilities()
    return not capabilities or any(capabilities.get(name) for name in _INSTRUCTIONS[dtype])


def cast_where_slow(model: Model) -> Model:
    """The model, in place: as it is where its device computes in its dtype, else computing in float32."""
    if not computes_in(model.dtype, model.device):
        cast_layerwise(model, torch.float32)
    return model


def computing_dtype(model: Any) -> torch.dtype:
    """What a model's activations are in, whatever some of its weights are kept in."""
    kept = _kept(model)
    others = (weight.dtype for weight in model.parameters() if id(weight) not in kept and weight.is_floating_point())
    dtype: torch.dtype = next(others, model.dtype) if kept else model.dtype
    return dtype


def cast_layerwise(model: nn.Module, dtype: torch.dtype) -> None:
    """Makes the model compute in `dtype`, in place; the weights of linear and embedding layers stay as they are.

    Those of layers that are more than these, such as an embedding that scales what it finds, are cast like all else.
    """
    others = {
        id(weight)
        for module in model.modules()
        if type(module) not in (nn.Linear, nn.Embedding)
        for weight in module.parameters(recurse=False)
    }
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and id(child.weight) not in others:
                setattr(module, name, CastLinear(child))
            elif type(child) is nn.Embedding and id(child.weight) not in others:
                setattr(module, name, _Embedding(child, dtype))
    kept = _kept(model)
    for parameter in model.parameters():
        if id(parameter) not in kept and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _kept(model: nn.Module) -> set[int]:
    """Ids of the weights that are cast for each product."""
    return {id(module.weight) for module in model.modules() if isinstance(module, (CastLinear, _Embedding))}


def linear(x_TD: Tensor, weight_ND: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """`F.linear` in the dtype of `x_TD`, whatever the weight is kept in."""
    if weight_ND.dtype != x_TD.dtype:  # a quantised weight has the dtype it is computed in, and cannot be cast
        weight_ND = weight_ND.to(x_TD.dtype)
    return F.linear(x_TD, weight_ND, bias_N)


class CastLinear(nn.Linear):
    """A linear layer over another one's weights that computes in its input's dtype."""

    def __init__(self, kept: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = kept.in_features, kept.out_features
        self.weight, self.bias = kept.weight, kept.bias

    def forward(self, x_TD: Tensor) -> Tensor:
        return linear(x_TD, self.weight, self.bias)


class _Embedding(nn.Embedding):
    """An embedding over another one's weights that returns them in another dtype."""

    def __init__(self, kept: nn.Embedding, dtype: torch.dtype) -> None:
        super().__init__(kept.num_embeddings, kept.embedding_dim, kept.padding_idx, _weight=kept.weight)
        self.weight = kept.weight  # the same parameter, which a tied head shares, not another one over its memory
        self._dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).to(self._dtype)
