"""Products over packed weights: right, and a row's the same whatever rows stand beside it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ray_job.models.casting import cast_layerwise, computes_in
from ray_job.models.projection import PackedLinear, Packing, Projection, can_pack, shared_copy

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        pytest.param(
            torch.bfloat16,
            marks=pytest.mark.skipif(not computes_in(torch.bfloat16, CPU), reason="no arithmetic for bfloat16"),
        ),
    ],
)
PLENTY = 2**40


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 160), nn.ReLU(), nn.Linear(160, 24, bias=False))


@BOTH
@pytest.mark.parametrize("shape", [(0,), (1,), (3,), (64,), (65,), (2, 3), (1, 1), (1, 70)])
@torch.inference_mode()
def test_a_packed_product_is_the_layers(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layer = nn.Linear(96, 160).to(dtype)
    x = torch.randn(*shape, 96).to(dtype)
    found = Projection(layer.weight, layer.bias, dtype)(x)
    torch.testing.assert_close(found, layer(x), atol=1e-5 if dtype == torch.float32 else 1e-2, rtol=1e-5)


@BOTH
@pytest.mark.parametrize("width", [48, 1280, 4096])
@torch.inference_mode()
def test_a_rows_product_does_not_depend_on_its_company(width: int, dtype: torch.dtype) -> None:
    """To the last bit: as far as one kernel takes them all, which is for any number of rows with AVX-512."""
    projection = Projection(torch.randn(320, width).to(dtype), packed_dtype=dtype)
    x = torch.randn(200 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 64, width).to(dtype)
    together = projection(x)
    for num_rows in (1, 2, 3, 5, 8, 17, 33, 63):
        assert torch.equal(projection(x[:num_rows]), together[:num_rows]), num_rows
    assert torch.equal(projection(x[7:8]), together[7:8])


@torch.inference_mode()
def test_layers_are_put_in_and_taken_out() -> None:
    module = two_layers()
    module.add_module("again", module[0])
    own, x = copy.copy(module._modules), torch.randn(5, 96)
    expected = module[:3](x)
    packing = Packing(module, torch.float32, PLENTY)
    assert packing.num_bytes == 4 * (96 * 160 + 160 * 24)
    assert module._modules == own
    packing.put_in()
    assert type(module[0]) is type(module[2]) is PackedLinear
    assert module.again is module[0]
    assert module[0].weight is own["0"].weight  # type: ignore[union-attr]
    torch.testing.assert_close(module[:3](x), expected, atol=1e-5, rtol=1e-5)
    packing.take_out()
    assert module._modules == own


def test_weights_kept_in_16_bits_are_packed_in_what_is_computed() -> None:
    module = two_layers().to(torch.bfloat16)
    cast_layerwise(module, torch.float32)
    x = torch.randn(5, 96)
    with torch.inference_mode():
        expected = module(x)
        packing = Packing(module, torch.float32, PLENTY)
        packing.put_in()
        assert packing.num_bytes
        torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)


def test_a_copy_shares_its_weights_and_not_its_layers() -> None:
    module = two_layers()
    copied = shared_copy(module)
    Packing(copied, torch.float32, PLENTY).put_in()
    assert type(module[0]) is nn.Linear
    assert all(one is other for one, other in zip(module.parameters(), copied.parameters(), strict=True))


@pytest.mark.parametrize(
    ("dtype", "free_bytes", "packs"),
    [
        (torch.float32, 16 * (96 * 160 + 160 * 24), True),
        (torch.float32, 16 * (96 * 160 + 160 * 24) - 1, False),
        (torch.float32, 0, False),
        (torch.float16, PLENTY, False),
        (torch.float64, PLENTY, False),
    ],
)
def test_copies_take_a_quarter_of_the_memory_at_most(dtype: torch.dtype, free_bytes: int, packs: bool) -> None:
    module = two_layers()
    assert can_pack([module[0], module[2]], dtype, free_bytes) is packs  # type: ignore[list-item]
    packing = Packing(module, dtype, free_bytes)
    packing.put_in()
    assert bool(packing.num_bytes) is packs
    assert (type(module[0]) is PackedLinear) is packs
