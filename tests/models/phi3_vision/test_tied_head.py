"""`tie_word_embeddings: true`: the head is the token embedding, read from any file that says so, and held once."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor

from ray_job.engine.continuous import ContinuousEngine
from ray_job.engine.interface import run
from ray_job.errors import ModelError
from ray_job.models.casting import cast_layerwise
from ray_job.models.phi3_vision import weights
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.packed import PackedPhi3Vision
from tests.engine.tiny import VOCABULARY, alone, essence, samples, tiny_model

from .oracle import golden_row, logits_of, with_config

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
CPU = torch.device("cpu")


@pytest.fixture
def untied(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model with a head equal to its embedding, and a configuration that does not say so: the reference."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "untied"))
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, HEAD: tensors[EMBEDDING].clone()}, folder / "model.safetensors")
    return folder


def tied(untied: Path, tensors: dict[str, Tensor]) -> Path:
    """A folder whose configuration ties the head, with these tensors."""
    folder = Path(shutil.copytree(untied, untied.parent / "tied"))
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**found, "tie_word_embeddings": True}))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(params=["without a head", "with an equal head", "without an embedding"])
def folder(request: pytest.FixtureRequest, untied: Path) -> Path:
    tensors = load_file(untied / "model.safetensors")
    if request.param == "without a head":
        del tensors[HEAD]
    elif request.param == "without an embedding":  # `safetensors.torch.save_model` keeps the first name
        del tensors[EMBEDDING]
    return tied(untied, tensors)


def assert_held_once(model: Phi3VisionModel) -> None:
    assert model.lm_head.weight is model.model.embed_tokens.weight
    num_untied = sum(tensor.numel() for tensor in model.state_dict().values())
    assert sum(p.numel() for p in model.parameters()) == num_untied - model.lm_head.weight.numel()
    assert not [name for name, parameter in model.named_parameters() if parameter.device.type == "meta"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_same_weights_twice(dtype: torch.dtype, folder: Path, untied: Path) -> None:
    model, reference = weights.load(folder, dtype=dtype), weights.load(untied, dtype=dtype)
    assert model.config.tie_word_embeddings
    assert_held_once(model)
    for name in ("img_wide", "text_long"):
        assert torch.equal(logits_of(model, golden_row(model, name)), logits_of(reference, golden_row(reference, name)))


def test_saving_and_loading_again(folder: Path, tmp_path: Path) -> None:
    model = weights.load(folder, dtype=torch.float32)
    weights.save(model, tmp_path / "saved", folder)
    assert HEAD not in load_file(tmp_path / "saved" / "model.safetensors")
    again = weights.load(tmp_path / "saved", dtype=torch.float32)
    assert again.config == model.config
    assert_held_once(again)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_a_file_by_the_libraries_own_saving(folder: Path, tmp_path: Path) -> None:
    model = weights.load(folder, dtype=torch.float32)
    model.config.save_pretrained(tmp_path)
    save_model(model, str(tmp_path / "model.safetensors"))
    again = weights.load(tmp_path, dtype=torch.float32)
    assert_held_once(again)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_sharded_with_the_two_in_different_files(untied: Path) -> None:
    tensors = load_file(untied / "model.safetensors")
    for is_equal in (True, False):
        head = tensors.pop(HEAD) if HEAD in tensors else tensors[EMBEDDING] + 1
        folder = tied(untied, tensors)
        (folder / "model.safetensors").rename(folder / "b.safetensors")
        save_file({HEAD: head}, folder / "a.safetensors")
        weight_map = {**dict.fromkeys(tensors, "b.safetensors"), HEAD: "a.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        if is_equal:
            assert_held_once(weights.load(folder, dtype=torch.float32))
        else:
            with pytest.raises(ModelError, match=r"a\.safetensors: lm_head\.weight is not model\.embed_tokens\.weight"):
                weights.load(folder, dtype=torch.float32)
        shutil.rmtree(folder)


def test_a_head_that_differs_is_refused(untied: Path) -> None:
    """Either the flag or the head is wrong, and the answers differ: which one is not to be guessed."""
    tensors = load_file(untied / "model.safetensors")
    tensors[HEAD][7, 3] += 0.01
    folder = tied(untied, tensors)
    with pytest.raises(
        ModelError, match="Set it to false if the head was trained by itself, or remove lm_head"
    ) as caught:
        weights.load(folder, dtype=torch.float32)
    assert str(folder / "model.safetensors") in str(caught.value)
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**found, "tie_word_embeddings": False}))
    model = weights.load(folder, dtype=torch.float32)
    assert torch.equal(model.lm_head.weight, tensors[HEAD])


def test_a_file_with_neither(untied: Path) -> None:
    tensors = load_file(untied / "model.safetensors")
    del tensors[HEAD], tensors[EMBEDDING]
    with pytest.raises(ModelError, match="2 tensors do not fit") as caught:
        weights.load(tied(untied, tensors), dtype=torch.float32)
    assert f"missing: {HEAD} (424, 64)" in str(caught.value)
    assert f"missing: {EMBEDDING} (424, 64)" in str(caught.value)


def test_a_missing_head_that_is_not_tied_hints_at_the_flag(untied: Path) -> None:
    tensors = load_file(untied / "model.safetensors")
    del tensors[HEAD]
    save_file(tensors, untied / "model.safetensors")
    with pytest.raises(ModelError, match=r"config\.json lacks tie_word_embeddings: true"):
        weights.load(untied, dtype=torch.float32)


def test_kept_in_sixteen_bits_it_is_still_one_matrix(folder: Path) -> None:
    rounded = weights.load(folder, dtype=torch.bfloat16).float()
    kept = weights.load(folder, dtype=torch.bfloat16)
    cast_layerwise(kept, torch.float32)
    assert_held_once(kept)
    assert kept.lm_head.weight.dtype == torch.bfloat16
    row = golden_row(kept, "img_wide")
    assert torch.equal(logits_of(kept, row), logits_of(rounded, golden_row(rounded, "img_wide")))


def test_moves_and_copies_keep_it_one(folder: Path) -> None:
    model = weights.load(folder, dtype=torch.float32)
    for other in (copy.deepcopy(model), with_config(model, sliding_window=16), copy.deepcopy(model).to(torch.float64)):
        assert_held_once(other)


@pytest.mark.parametrize("packs", [True, False])
def test_the_continuous_engine_answers_as_each_row_alone(packs: bool) -> None:
    model = with_config(tiny_model(), tie_word_embeddings=True)
    assert_held_once(model)
    rows = samples(11, 40)
    engine = ContinuousEngine(PackedPhi3Vision(model, None if packs else 0), VOCABULARY, max_slots=5)
    assert {result.key: essence(result) for result in run(engine, rows)} == alone(model, rows)


def test_it_is_trained_by_both_its_uses(folder: Path) -> None:
    model = weights.load(folder, dtype=torch.float32).train()
    ids = torch.tensor([1, 5, 9])
    embeds = model.embed_row(ids)[None]
    model(embeds, position_ids_BL=torch.arange(3)[None], is_long_B=torch.tensor([False])).square().mean().backward()
    gradient = model.lm_head.weight.grad
    assert gradient is not None
    assert gradient.abs().sum(-1).ne(0).all()  # of the head all rows, of the embedding alone only three


def test_initialised_as_one_matrix(tiny_folder: Path) -> None:
    found = json.loads((tiny_folder / "config.json").read_text())
    model = Phi3VisionModel(Phi3VisionConfig.from_dict({**found, "tie_word_embeddings": True}))
    weights.init_weights(model, 0)
    assert_held_once(model)
    assert float(model.lm_head.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
