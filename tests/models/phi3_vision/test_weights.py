"""Loading is strict and says all that is wrong; saving gives back the same tensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ray_job.errors import ModelError
from ray_job.models.phi3_vision import weights
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig
from ray_job.models.phi3_vision.model import Phi3VisionModel

from .oracle import golden_row, logits_of


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to break."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def official_model() -> Phi3VisionModel:
    factors = (1.0,) * 48
    with torch.device("meta"):
        return Phi3VisionModel(Phi3VisionConfig(short_factor=factors, long_factor=factors))


def test_official_size() -> None:
    model = official_model()
    assert len(model.state_dict()) == 592
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_146_621_440


def test_official_names(official: Path) -> None:
    index = json.loads((official / "model.safetensors.index.json").read_text())
    assert set(official_model().state_dict()) == set(index["weight_map"])
    parameters = official_model().parameters()
    assert 2 * sum(parameter.numel() for parameter in parameters) == index["metadata"]["total_size"]


def test_save_and_load_again(sdpa_model: Phi3VisionModel, tiny_folder: Path, tmp_path: Path) -> None:
    weights.save(sdpa_model, tmp_path, tiny_folder)
    again = weights.load(tmp_path, dtype=torch.float32)
    assert again.config == sdpa_model.config
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        ["config.json", "model.safetensors", *weights.PROCESSOR_FILES]
    )
    for name, tensor in sdpa_model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    row = golden_row(sdpa_model, "img_wide")
    assert torch.equal(logits_of(again, row), logits_of(sdpa_model, row))
    with pytest.raises(ModelError, match=r"tokenizer.json does not exist"):
        weights.save(sdpa_model, tmp_path, tmp_path / "nowhere")


def test_nothing_stays_on_the_meta_device(folder: Path) -> None:
    model = weights.load(folder, dtype=torch.bfloat16, device="cpu")
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not model.training
    assert (model.device.type, model.dtype) == ("cpu", torch.bfloat16)


def test_sharded(folder: Path, sdpa_model: Phi3VisionModel) -> None:
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, kept in shards.items():
        save_file({name: tensors[name] for name in kept}, folder / file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, kept in shards.items() for name in kept}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    again = weights.load(folder, dtype=torch.float32)
    for name, tensor in sdpa_model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    (folder / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"names files that are not there: b\.safetensors"):
        weights.load(folder, dtype=torch.float32)


def test_every_wrong_tensor_is_listed(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["extra.weight"] = tensors.pop("lm_head.weight")
    tensors["model.norm.weight"] = torch.zeros(63)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match="3 tensors do not fit") as caught:
        weights.load(folder, dtype=torch.float32)
    message = str(caught.value)
    assert "unexpected in model.safetensors: extra.weight (424, 64)" in message
    assert "shape in model.safetensors: model.norm.weight is (63,), not (64,)" in message
    assert "missing: lm_head.weight (424, 64)" in message


def test_a_cut_off_file(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        weights.load(folder, dtype=torch.float32)


def test_pickles_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"neither model.safetensors nor"):
        weights.load(folder, dtype=torch.float32)
    (folder / "pytorch_model.bin").write_bytes(b"not to be read")
    with pytest.raises(ModelError, match=r"pytorch_model.bin. These are pickles"):
        weights.load(folder, dtype=torch.float32)


def test_normalisation_is_read_with_the_weights(folder: Path, sdpa_model: Phi3VisionModel) -> None:
    found = json.loads((folder / "preprocessor_config.json").read_text())
    assert sdpa_model.image_mean == tuple(found["image_mean"])
    (folder / "preprocessor_config.json").write_text(json.dumps({**found, "image_std": [1.0, 1.0, 1.0]}))
    assert weights.load(folder, dtype=torch.float32).image_std == (1.0, 1.0, 1.0)


def test_seeded_initialisation(sdpa_model: Phi3VisionModel) -> None:
    def fresh(seed: int) -> dict[str, torch.Tensor]:
        model = Phi3VisionModel(sdpa_model.config)
        weights.init_weights(model, seed)
        return model.state_dict()

    first, same, other = fresh(1), fresh(1), fresh(2)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert float(first["lm_head.weight"].std()) == pytest.approx(0.02, rel=0.1)
    assert float(first["model.vision_embed_tokens.img_projection.0.bias"].abs().max()) == 0
    assert torch.equal(first["model.norm.weight"], torch.ones(64))


def test_a_seed_means_the_same_weights_in_any_version(sdpa_model: Phi3VisionModel) -> None:
    """The order in which layers are filled is part of a training's recipe."""
    model = Phi3VisionModel(sdpa_model.config)
    weights.init_weights(model, 5)
    names = [
        "model.embed_tokens.weight",
        "model.vision_embed_tokens.img_processor.vision_model.encoder.layers.1.self_attn.v_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "lm_head.weight",
    ]
    found = [float(model.state_dict()[name].flatten()[-1]) for name in names]
    assert found == pytest.approx([-0.04072532, -0.02410075, -0.02145553, -0.00435197, 0.00651795], rel=1e-4)
