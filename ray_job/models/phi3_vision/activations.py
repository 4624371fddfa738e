"""The activation functions a configuration may name; `config_fields.py` checks the names without torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def quick_gelu(x: Tensor) -> Tensor:
    """x · σ(1.702 x), any shape; CLIP's approximation of GELU.

    Where nothing is trained it makes one new tensor instead of three: on a CPU they cost more than the arithmetic.
    """
    if torch.is_grad_enabled():
        return x * torch.sigmoid(1.702 * x)
    return (1.702 * x).sigmoid_().mul_(x)


_TANH_GELU = functools.partial(F.gelu, approximate="tanh")

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": _TANH_GELU,
    "gelu_pytorch_tanh": _TANH_GELU,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
}
