"""Adapters that `peft` itself writes, merged at load: the answers are those of the base with the live adapter."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ray_job.errors import ModelError
from ray_job.models.adapters import merge_adapter
from ray_job.models.phi3_vision import weights
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig
from ray_job.models.phi3_vision.model import Phi3VisionModel
from tests.engine.tiny import picture, prompt, tiny_model

from .tuned import save_adapter

pytestmark = pytest.mark.data
peft = pytest.importorskip("peft")

DECODER = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
TOLERANCE = 1e-5
LORAS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"o_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 32}},
    "modules_to_save": {"modules_to_save": ["img_projection", "lm_head"]},
    "tower": {"target_modules": [*DECODER, "q_proj", "fc1", "img_projection.0"]},
    "pattern of names": {"target_modules": r".*layers\.1\.self_attn\.(qkv|o)_proj"},
    "embedding": {"target_modules": ["embed_tokens", "lm_head"]},
    "biases": {"target_modules": ["fc1", "fc2"], "lora_bias": True},
    "new tokens": {"trainable_token_indices": {"model.embed_tokens": [5, 9]}},
}


def lora(**options: Any) -> Any:
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": DECODER, **options})


def base(is_tied: bool = False) -> Phi3VisionModel:
    """The tiny model, to be changed."""
    model = copy.deepcopy(tiny_model())
    if is_tied:
        object.__setattr__(model.config, "tie_word_embeddings", True)
        model.tie_head()
    return model


@torch.no_grad()
def logits(model: Phi3VisionModel) -> Tensor:
    """Of a row with a picture, through the tower, the decoder and the head; whatever modules they are."""
    shown = picture(3, 1, 2)
    (pixels,) = (torch.tensor(array) for array in shown.arrays.values())
    embeds = model.embed_row(torch.tensor(prompt([5, 9, 14, 30], [shown])), model.encode_pictures([pixels]))[None]
    places = torch.arange(embeds.shape[1])[None]
    return model(embeds, position_ids_BL=places, is_long_B=torch.tensor([False]))[0]


def difference(one: Tensor, other: Tensor) -> float:
    """Of the largest value."""
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("options", LORAS.values(), ids=LORAS)
@pytest.mark.parametrize("is_tied", [False, True], ids=["own head", "tied head"])
def test_merged_equals_live(options: Mapping[str, Any], is_tied: bool, tmp_path: Path) -> None:
    if is_tied and "trainable_token_indices" in options:
        pytest.skip("peft looks for the head by methods of the library's own models")
    live = base(is_tied)
    folder = save_adapter(live, lora(**options), tmp_path)
    merged = merge_adapter(base(is_tied), folder)
    assert difference(logits(merged), logits(live)) < TOLERANCE
    assert difference(logits(merged), logits(base(is_tied))) > 100 * TOLERANCE
    assert merged.state_dict().keys() == tiny_model().state_dict().keys()
    assert not merged.training


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(target_modules=DECODER, feedforward_modules=["down_proj"]),
        peft.LoHaConfig(r=2, target_modules=DECODER),
        peft.LoKrConfig(r=2, target_modules=DECODER),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_other_kinds_of_adapters(config: Any, tmp_path: Path) -> None:
    live = base()
    folder = save_adapter(live, config, tmp_path)
    assert difference(logits(merge_adapter(base(), folder)), logits(live)) < TOLERANCE
    assert difference(logits(live), logits(base())) > 100 * TOLERANCE


def test_under_the_names_of_the_official_code(tiny_folder: Path, tmp_path: Path) -> None:
    """Trained on a tree of modules that has the names of a checkpoint which the official code wrote, and nothing else
    in common with ours; what comes out is computed here by hand."""
    tensors = load_file(tiny_folder / "model.safetensors")
    names = ["qkv_proj", "gate_up_proj", "q_proj", "img_projection.0", "img_projection.2"]
    save_adapter(_tree(tensors), lora(target_modules=names), tmp_path)
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    merged = merge_adapter(weights.load(tiny_folder, dtype=torch.float32), tmp_path).state_dict()
    changed = [name for name in tensors if not torch.equal(tensors[name], merged[name])]
    assert changed == [
        name for name in tensors if name.removesuffix(".weight").endswith(tuple(names)) and "weight" in name
    ]
    assert "model.vision_embed_tokens.img_projection.0.weight" in changed
    assert "model.layers.1.self_attn.qkv_proj.weight" in changed
    for name in changed:
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        delta = 2.0 * adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]  # alpha / r = 2
        torch.testing.assert_close(merged[name], tensors[name] + delta, rtol=0, atol=1e-6)


def _tree(tensors: Mapping[str, Tensor]) -> nn.Module:
    """Modules for a checkpoint's names: a linear layer for each matrix."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        if last != "weight" or tensor.ndim != 2 or "embed" in path[-1]:
            continue
        parent = root
        for part in path[:-1]:
            if part not in dict(parent.named_children()):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        layer = nn.Linear(tensor.shape[1], tensor.shape[0], bias=False)
        layer.weight.data = tensor.clone()
        parent.add_module(path[-1], layer)
    return root


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["plain", "dora"])
def test_16_bits_are_rounded_once(options: Mapping[str, Any], tmp_path: Path) -> None:
    """To the nearest of what a merge in float64 gives."""
    narrow = base().to(torch.bfloat16)
    wide = copy.deepcopy(narrow).double()
    save_adapter(copy.deepcopy(narrow), lora(**options), tmp_path)
    tuned = peft.PeftModel(wide, peft.PeftConfig.from_pretrained(str(tmp_path)))
    peft.set_peft_model_state_dict(tuned, load_file(tmp_path / "adapter_model.safetensors"))
    exact = tuned.merge_and_unload().model.layers[0].mlp.down_proj.weight
    merged = merge_adapter(narrow, tmp_path).model.layers[0].mlp.down_proj.weight
    assert merged.dtype == torch.bfloat16
    is_same = merged == exact.to(torch.bfloat16)
    assert float(is_same.float().mean()) > 0.999  # a sum in float32 can fall on the other side of a half


def test_a_library_model(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text, vision = LlamaConfig(**sizes, vocab_size=64), CLIPVisionConfig(**sizes, image_size=28, patch_size=14)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=60)
    ).eval()
    ids = torch.tensor([[1, 5, 60, 60, 60, 60, 9, 14]])
    pixels = torch.randn(1, 3, 28, 28)
    targets = ["q_proj", "down_proj", "linear_1"]
    for number, options in enumerate(({}, {"use_dora": True}, {"modules_to_save": ["lm_head"]})):
        live, merged = copy.deepcopy(model), copy.deepcopy(model)
        folder = save_adapter(live, lora(target_modules=targets, **options), tmp_path / str(number))
        merged = merge_adapter(merged, folder)
        with torch.no_grad():
            expected, found, plain = (each(input_ids=ids, pixel_values=pixels).logits for each in (live, merged, model))
        assert difference(found, expected) < TOLERANCE
        assert difference(plain, expected) > 100 * TOLERANCE
        assert merged.state_dict().keys() == model.state_dict().keys()


def test_a_tied_head_that_is_not_changed_stays_tied(tmp_path: Path) -> None:
    save_adapter(base(is_tied=True), lora(), tmp_path)
    merged = merge_adapter(base(is_tied=True), tmp_path)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


def _without(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if name not in key}


def test_names_that_are_not_in_the_model(tmp_path: Path) -> None:
    """A list of names tunes those that are there: the others would silently do nothing."""
    folder = save_adapter(base(), lora(), tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    extra = {
        key.replace("layers.1.", "layers.7."): tensor.clone() for key, tensor in tensors.items() if "layers.1." in key
    }
    save_file({**tensors, **extra}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"not in the model: base_model\.model\.model\.layers\.7") as caught:
        merge_adapter(base(), folder)
    assert "use the base it was trained on" in str(caught.value)
    assert str(caught.value).count("\n") == len(extra)


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head"]}], ids=["lora", "modules_to_save"])
def test_names_that_are_not_in_the_file(options: Mapping[str, Any], tmp_path: Path) -> None:
    folder = save_adapter(base(), lora(**options), tmp_path)
    gone = "lm_head" if options else "layers.0.mlp.down_proj.lora_B"
    tensors = load_file(folder / "adapter_model.safetensors")
    assert any(gone in key for key in tensors)
    save_file(_without(gone, tensors), folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=gone.replace(".", r"\.")):
        merge_adapter(base(), folder)


def test_other_shapes_and_no_such_modules(tmp_path: Path) -> None:
    folder = save_adapter(base(), lora(), tmp_path / "narrow")
    config = {**tiny_model().config.to_dict(), "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 8}
    wide = Phi3VisionModel(Phi3VisionConfig.from_dict(config))
    with pytest.raises(ModelError, match=r"size mismatch for .*lora_A"):
        merge_adapter(wide, folder)
    other = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ModelError, match="qkv_proj"):
        merge_adapter(other, folder)
    elsewhere = save_adapter(other, lora(target_modules=["0"]), tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"cannot be merged into this model"):
        merge_adapter(base(), elsewhere)


def test_broken_files(tmp_path: Path) -> None:
    folder = save_adapter(base(), lora(), tmp_path)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "lora_B" in name)
    save_file({**tensors, name: torch.full_like(tensors[name], torch.nan)}, file)
    with pytest.raises(ModelError, match="NaNs detected in the merged weights"):
        merge_adapter(base(), folder)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ModelError, match=r"is not a complete safetensors file"):
        merge_adapter(base(), folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    save_file(tensors, file)
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": "four"}))
    with pytest.raises(ModelError, match="cannot be merged"):
        merge_adapter(base(), folder)


def test_without_peft_the_error_says_how_to_install_it(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['peft'] = None; from pathlib import Path; from torch import nn; "
        "from ray_job.models.adapters import merge_adapter; merge_adapter(nn.Linear(1, 1), Path('.'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ModelError: model.adapter needs the package peft" in done.stderr
    assert "pip install 'ray_job[peft]'" in done.stderr
