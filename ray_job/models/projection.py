"""A linear layer's product on a CPU, by the kernel that is fastest for as many rows as there are.

That is oneDNN's over a weight laid out for it once: for any number of rows where the processor has AVX-512, else for
few, as in decoding, and MKL's, which `nn.Linear` calls, for many (figures in `bench/RESULTS.md`). It needs the weight a
second time in memory; of a weight that is pages of its file the first copy can then leave it.

oneDNN's product of a row is the same to the last bit beside any other rows; MKL's is not.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ray_job.engine.host import available_bytes
from ray_job.models.casting import CastLinear, computes_in, linear
from ray_job.models.quantization import is_quantized

Module = TypeVar("Module", bound=nn.Module)

_FEW_ROWS = 64
_MAX_MEMORY_SHARE = 0.25
_DTYPES = (torch.float32, torch.bfloat16)


class Projection:
    """x · weightᵀ + bias. With a `packed_dtype` it keeps a second copy of the weight, for inputs in that dtype."""

    def __init__(
        self, weight_ND: Tensor, bias_N: Tensor | None = None, packed_dtype: torch.dtype | None = None
    ) -> None:
        self._weight = weight_ND
        self._bias = bias_N
        self._packed, self._packed_bias = None, None
        self._packed_dtype = packed_dtype
        if packed_dtype is not None:
            self._packed = _packed(weight_ND, packed_dtype)
            self._packed_bias = None if bias_N is None else bias_N.detach().to(packed_dtype)
        self._max_rows = sys.maxsize if torch.backends.cpu.get_cpu_capability() == "AVX512" else _FEW_ROWS

    def __call__(self, x: Tensor) -> Tensor:
        """(…, D) → (…, N)."""
        num_rows = x.shape[:-1].numel()
        if self._packed is None or x.dtype != self._packed_dtype or not 0 < num_rows <= self._max_rows:
            return linear(x, self._weight, self._bias)
        if num_rows == 1:  # alone, a row's sums may be made in another order than beside a second one
            return self._product(x.expand(2, *x.shape))[:1].view(*x.shape[:-1], -1)
        return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._packed_bias, "none", [], "")
        return product


class PackedLinear(nn.Linear):
    """A linear layer over another one's parameters, which must not change any more, and a packed copy of its weight."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self._projection = Projection(layer.weight, layer.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, N)."""
        return self._projection(x)


class Packing:
    """Packed layers in the places of a module's linear layers, all of them or, where `can_pack` says so, none.

    Args:
        module: on its device, its weights final; it is changed by `put_in` alone.
        dtype: that its linear layers' inputs have.
        free_bytes: as for `can_pack`.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, free_bytes: int | None = None) -> None:
        found = list(_linear_layers(module)) if _has_kernels(dtype) else []
        layers = {id(layer): layer for _, _, layer in found}
        if not can_pack(layers.values(), dtype, free_bytes):
            found = []
        packed = {key: PackedLinear(layer, dtype) for key, layer in layers.items()} if found else {}
        self._places = [(parent, name, layer, packed[id(layer)]) for parent, name, layer in found]
        self.num_bytes = sum(layer.weight.numel() * dtype.itemsize for layer in packed.values())

    def put_in(self) -> None:
        """Lets the module compute with them."""
        for parent, name, _, packed in self._places:
            setattr(parent, name, packed)

    def take_out(self) -> None:
        """Gives the module its own layers back."""
        for parent, name, layer, _ in self._places:
            setattr(parent, name, layer)


def shared_copy(module: Module) -> Module:
    """Another module over the same parameters, whose layers can be replaced."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def can_pack(layers: Iterable[nn.Linear], dtype: torch.dtype, free_bytes: int | None = None) -> bool:
    """Whether second copies of these layers' weights, in the `dtype` they compute in, are of use and small beside the
    free memory; by default what is available to this process now. Who quantises weights has no room for copies."""
    weights = [layer.weight for layer in layers]
    if any(map(is_quantized, weights)) or any(weight.device.type != "cpu" for weight in weights):
        return False
    if not _has_kernels(dtype):
        return False
    free_bytes = available_bytes() if free_bytes is None else free_bytes
    return sum(weight.numel() * dtype.itemsize for weight in weights) <= _MAX_MEMORY_SHARE * free_bytes


def _has_kernels(dtype: torch.dtype) -> bool:
    return torch._C._has_mkldnn and dtype in _DTYPES and computes_in(dtype, torch.device("cpu"))


def _linear_layers(module: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Plain ones, each with its parent and its name there: of a subclass nobody here knows what else it does."""
    return [
        (module.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], child)
        for path, child in module.named_modules(remove_duplicate=False)
        if type(child) in (nn.Linear, CastLinear)
    ]


def _packed(weight_ND: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The weight in oneDNN's layout; None where this build of torch has no such operator, or not in this form."""
    try:
        with torch.no_grad():
            packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_ND.detach().to(dtype), _FEW_ROWS)
            sample_1D = torch.zeros((1, weight_ND.shape[1]), dtype=dtype)
            torch.ops.mkldnn._linear_pointwise(sample_1D, packed, None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return None
    return packed
