"""Weights in 8 bits: near the answers of whole weights, alike in both engines, and a quarter of the memory."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ray_job.engine.continuous import ContinuousEngine
from ray_job.engine.interface import run
from ray_job.errors import ModelError
from ray_job.models.casting import cast_layerwise
from ray_job.models.loading import load_model, load_processor
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.packed import PackedPhi3Vision
from ray_job.models.placement import Placement
from ray_job.models.projection import can_pack
from ray_job.models.quantization import Quantization, is_quantized, quantize_layers, stored_bytes
from ray_job.spec import JobSpec, ModelSpec
from tests.engine.tiny import VOCABULARY, alone, essence, samples, tiny_model

needs_torchao = pytest.mark.data
BOTH = pytest.mark.parametrize("kind", ["int8", "fp8"])
# The largest relative rounding of a value near its row's largest, or anywhere: half a step of 127, 2⁻⁴.
ROUNDING = {"int8": 0.5 / 127, "fp8": 2**-4}


def quantized(kind: Quantization, dtype: torch.dtype = torch.float32) -> Phi3VisionModel:
    pytest.importorskip("torchao")
    model = copy.deepcopy(tiny_model()).to(dtype)
    quantize_layers(model.model.layers, kind, dtype, "cpu")
    return model


def spec(**model: str) -> JobSpec:
    data = {"input": {"path": "rows.parquet"}, "output": {"path": "out"}, "prompt": {"template": "What?"}}
    return JobSpec.from_dict({**data, "model": {"device": "cpu", **model}})


@needs_torchao
@BOTH
def test_only_the_decoders_linear_layers_are_rounded(kind: Quantization) -> None:
    model, whole = quantized(kind), tiny_model()
    weights = dict(model.named_parameters())
    rounded = {name for name, weight in weights.items() if is_quantized(weight)}
    assert rounded == {name for name in weights if name.startswith("model.layers.") and "_proj" in name}
    for name, weight in whole.named_parameters():
        if name not in rounded:
            assert torch.equal(weights[name], weight), name
            continue
        found: Tensor = weights[name].dequantize()
        steps = weight.abs().amax(1, keepdim=True) if kind == "int8" else weight.abs() + 1e-3
        assert ((found - weight).abs() <= ROUNDING[kind] * steps * 1.001).all(), name
        assert not torch.equal(found, weight)


@needs_torchao
@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_are_those_of_the_rounded_weights(kind: Quantization, dtype: torch.dtype) -> None:
    layer = quantized(kind, dtype).model.layers[0].mlp.down_proj
    x_TD = torch.randn(7, layer.in_features, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = x_TD.float() @ layer.weight.dequantize().float().T
    found = layer(x_TD)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.float(), expected, rtol=0, atol=4 * torch.finfo(dtype).eps * float(expected.abs().max())
    )


@needs_torchao
@BOTH
def test_rows_answer_together_as_each_alone(kind: Quantization) -> None:
    """In the continuous engine as one by one in the static one: no row's tokens depend on its company."""
    model, rows = quantized(kind), samples(11, 40)
    expected = alone(model, rows)
    found = {result.key: essence(result) for result in run(ContinuousEngine(PackedPhi3Vision(model), VOCABULARY), rows)}
    assert found == expected
    assert expected != alone(tiny_model(), rows)


@needs_torchao
def test_a_model_that_keeps_16_bits_and_computes_in_32(tmp_path: Path) -> None:
    """Its decoder's layers are rounded from the 16 bits; what is not quantised stays in them."""
    pytest.importorskip("torchao")
    kept = copy.deepcopy(tiny_model()).to(torch.bfloat16)
    wide = copy.deepcopy(kept).float()
    cast_layerwise(kept, torch.float32)
    for model in (kept, wide):
        quantize_layers(model.model.layers, "int8", torch.float32, "cpu")
    assert kept.lm_head.weight.dtype == torch.bfloat16
    rows = samples(12, 20)
    assert alone(kept, rows) == alone(wide, rows)
    packed = ContinuousEngine(PackedPhi3Vision(kept), VOCABULARY)
    assert {result.key: essence(result) for result in run(packed, rows)} == alone(wide, rows)


@needs_torchao
@BOTH
def test_memory(kind: Quantization) -> None:
    model, whole = quantized(kind), tiny_model()
    count = sum(weight.numel() for name, weight in whole.model.layers.named_parameters() if "_proj" in name)
    rows = sum(len(weight) for name, weight in whole.model.layers.named_parameters() if "_proj" in name)
    before, after = (sum(map(stored_bytes, each.parameters())) for each in (whole, model))
    scales = rows * (5 if kind == "int8" else 4)  # float32 a row, and torchao's zero point
    assert before - after == 3 * count - scales
    assert PackedPhi3Vision(model).packed_bytes == 0
    assert not can_pack([model.model.layers[0].mlp.down_proj], torch.float32, 2**40)


@needs_torchao
@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_the_spec_reaches_the_loaded_model(name: Quantization) -> None:
    pytest.importorskip("torchao")
    model = load_model(spec(quantization=name), Placement("cpu", "float32", threads=1, memory_bytes=2**30))
    assert is_quantized(model.model.layers[0].self_attn.qkv_proj.weight)
    assert not is_quantized(model.lm_head.weight)


@needs_torchao
def test_a_library_model() -> None:
    pytest.importorskip("torchao")
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    whole = AutoModelForCausalLM.from_config(Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=64)).eval()
    model = copy.deepcopy(whole)
    quantize_layers(model.get_decoder().layers, "int8", torch.float32, "cpu")
    assert sum(is_quantized(weight) for weight in model.parameters()) == 2 * 7
    ids = torch.tensor([[1, 5, 9, 14]])
    with torch.no_grad():
        found, expected = model(ids).logits, whole(ids).logits
    error = (found - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.02


@needs_torchao
def test_a_decoder_without_linear_layers() -> None:
    pytest.importorskip("torchao")
    with pytest.raises(ModelError, match="no linear layers that could be quantised"):
        quantize_layers(nn.Sequential(nn.LayerNorm(4)), "int8", torch.float32, "cpu")


def test_without_torchao_the_error_says_how_to_install_it() -> None:
    code = (
        "import sys; sys.modules['torchao'] = None; import torch; from torch import nn; "
        "from ray_job.models.quantization import quantize_layers; "
        "quantize_layers(nn.Sequential(nn.Linear(1, 1)), 'int8', torch.float32, 'cpu')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ModelError: model.quantization needs the package torchao" in done.stderr
    assert "pip install 'ray_job[quantization]'" in done.stderr


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"load_in_4bit": True}, "an unknown method"),
        (7, "an unknown method"),
    ],
)
def test_a_quantised_phi3_checkpoint_is_refused_before_its_weights_are_read(
    config: object, method: str, tiny_folder: Path, tmp_path: Path
) -> None:
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").unlink()
    found = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**found, "quantization_config": config}))
    with pytest.raises(ModelError, match=f"quantised by {method}.*use the original checkpoint") as caught:
        load_processor(ModelSpec(path=str(tmp_path)))
    assert str(tmp_path / "config.json") in str(caught.value)
