"""Library models with an adapter merged, with weights in 8 bits, and from checkpoints that come quantised."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ray_job.errors import ModelError
from ray_job.models.adapters import merge_adapter
from ray_job.models.auto import weights
from ray_job.models.auto.gate import fit
from ray_job.models.loading import decoder_layers
from ray_job.models.quantization import check_once, is_quantized, quantize_layers
from ray_job.spec import ModelSpec
from tests.models.auto.families import FAMILIES, make, write
from tests.models.auto.library_rows import family, few
from tests.models.auto.settings import SETTINGS, answers
from tests.models.tuned import save_adapter

needs_libraries = pytest.mark.data
IDS = torch.tensor([[1, 5, 9, 14, 30, 7]])
OTHERS = ("vision", "visual", "projector", "connector", "lm_head", "embed")


@needs_libraries
@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_merged_equals_it_live(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    _, model = make(name)
    live = copy.deepcopy(model)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], use_dora=True)
    merged = merge_adapter(copy.deepcopy(model), save_adapter(live, config, tmp_path))
    with torch.no_grad():
        found, expected, plain = (each(input_ids=IDS).logits for each in (merged, live, model))
    scale = expected.abs().max()
    assert (found - expected).abs().max() < 2e-5 * scale
    assert (plain - expected).abs().max() > 1e-2 * scale
    assert merged.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_decoders_linear_layers_and_no_others(name: str) -> None:
    _, model = make(name)
    own = set(decoder_layers(model).modules())
    linears = {key: module for key, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = {key for key, module in linears.items() if module in own}
    assert chosen == {key for key in linears if not any(other in key for other in OTHERS)}
    assert len(chosen) >= 18


@needs_libraries
@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_8_bits_in_the_continuous_engine(name: str, kind: Any) -> None:
    """Rows are answered together as each alone, and near to what whole weights answer."""
    pytest.importorskip("torchao")
    made = family(name)
    _, whole = make(name)
    _, model = make(name)
    quantize_layers(decoder_layers(model), kind, torch.float32, "cpu")
    with torch.no_grad():
        found, expected = (each(input_ids=IDS).logits for each in (model, whole))
    assert 1e-4 < (found - expected).norm() / expected.norm() < (0.05 if kind == "int8" else 0.3)
    packed = fit(model, made.normalization, few(made))
    alone = answers(packed, made.samples, **SETTINGS["one by one"])
    assert answers(packed, made.samples, **SETTINGS["together"]) == alone


def configure(folder: Path, quantization: Mapping[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": dict(quantization)}))


@needs_libraries
def test_a_checkpoint_of_torchao(tmp_path: Path) -> None:
    """It loads with its 8 bits, and answers as the model that was quantised here."""
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForImageTextToText, TorchAoConfig

    write("llava", tmp_path / "whole")
    others = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]
    config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=others)
    auto: Any = AutoModelForImageTextToText
    auto.from_pretrained(tmp_path / "whole", quantization_config=config, dtype=torch.float32).save_pretrained(
        tmp_path / "quantised"
    )
    model = weights.load(tmp_path / "quantised", dtype=torch.float32)
    here = weights.load(tmp_path / "whole", dtype=torch.float32)
    quantize_layers(decoder_layers(here), "int8", torch.float32, "cpu")
    assert sum(map(is_quantized, model.parameters())) == sum(map(is_quantized, here.parameters())) == 21
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, here(input_ids=IDS).logits, rtol=0, atol=1e-4)


@needs_libraries  # accelerate, without which the library reads none
def test_a_checkpoint_in_fp8_is_whole_again_where_there_is_no_gpu(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    _, whole = write("llava", tmp_path)
    tensors, side = load_file(tmp_path / "model.safetensors"), 16
    for name, weight in list(tensors.items()):
        if "language_model" in name and name.endswith("proj.weight"):
            blocks = weight.unflatten(1, (-1, side)).unflatten(0, (-1, side))
            scales = blocks.abs().amax((1, 3)) / 448
            tensors[name] = (blocks / scales[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scales
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    others = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]
    configure(tmp_path, {"quant_method": "fp8", "weight_block_size": [side, side], "modules_to_not_convert": others})
    model = weights.load(tmp_path, dtype=torch.float32)
    if not torch.cuda.is_available():
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    for name, weight in whole.named_parameters():
        found = model.get_parameter(name)
        assert (found - weight).abs().max() <= 2**-4 * weight.abs().max(), name


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"quant_method": "gptq", "bits": 4},
            r"quantised by gptq, and the library cannot read them here: .*pip install",
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            r"quantised by bitsandbytes, .*requires .*pip install",
        ),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, r"compressed-tensors.*pip install"),
        ({"quant_method": "homemade"}, r"quantised by homemade, which the library does not know"),
        ({"bits": 4}, r"quantised by an unknown method"),
    ],
)
def test_checkpoints_that_cannot_be_read_here(config: Mapping[str, Any], said: str, tmp_path: Path) -> None:
    write("llava", tmp_path)
    configure(tmp_path, config)
    with pytest.raises(ModelError, match=said) as caught:
        weights.load(tmp_path, dtype=torch.float32)
    assert "use the original checkpoint, with model.quantization: int8" in str(caught.value)


@pytest.mark.parametrize("change", [{"adapter": "adapter"}, {"quantization": "int8"}])
def test_what_is_quantised_already_is_not_changed_again(change: Mapping[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"quantization_config": {"quant_method": "awq"}}))
    (name,) = change
    with pytest.raises(
        ModelError, match=rf"^model\.{name}: .*quantised already, by awq; leave model\.{name} out, or use"
    ):
        check_once(ModelSpec(path=str(tmp_path), **change), file)
    file.write_text(json.dumps({}))
    check_once(ModelSpec(path=str(tmp_path), **change), file)
