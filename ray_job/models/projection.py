"""A linear layer's product on a CPU, by the kernel that is fastest for as many rows as there are.

With many rows that is MKL's, which `nn.Linear` calls; with few, as in decoding, oneDNN's over a weight laid out for it
once (figures in `bench/RESULTS.md`). The second way needs the weight a second time in memory.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ray_job.engine.host import available_bytes
from ray_job.models.casting import linear
from ray_job.models.quantization import is_quantized

_MAX_ROWS = 64
_MAX_MEMORY_SHARE = 0.25


class Projection:
    """Calls a linear layer that has no bias; `pack` lets it keep a second copy of the weight."""

    def __init__(self, layer: nn.Linear, pack: bool) -> None:
        self._weight = layer.weight
        self._packed = _packed(layer.weight) if pack else None

    def __call__(self, x_TD: Tensor) -> Tensor:
        """(T, D) → (T, N)."""
        if self._packed is not None and len(x_TD) <= _MAX_ROWS:
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x_TD, self._packed, None, "none", [], "")
            return product
        return linear(x_TD, self._weight)


def can_pack(layers: Iterable[nn.Linear], dtype: torch.dtype, free_bytes: int | None = None) -> bool:
    """Whether second copies of these layers' weights, in the `dtype` they compute in, are of use and small beside the
    free memory; by default what is available to this process now. Who quantises weights has no room for copies."""
    weights = [layer.weight for layer in layers]
    if any(map(is_quantized, weights)):
        return False
    if not torch._C._has_mkldnn or dtype != torch.float32 or any(weight.device.type != "cpu" for weight in weights):
        return False
    free_bytes = available_bytes() if free_bytes is None else free_bytes
    return sum(weight.numel() * dtype.itemsize for weight in weights) <= _MAX_MEMORY_SHARE * free_bytes


def _packed(weight_ND: Tensor) -> Tensor | None:
    """The weight in oneDNN's layout; None where this build of torch has no such operator, or not in this form."""
    try:
        with torch.no_grad():
            packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_ND.detach().float(), _MAX_ROWS)
            sample_1D = torch.zeros((1, weight_ND.shape[1]))
            torch.ops.mkldnn._linear_pointwise(sample_1D, packed, None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return None
    return packed
