"""Loading a library model is strict and says all that is wrong; nothing but safetensors is read, and no code is run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from ray_job.errors import ModelError
from ray_job.models.auto import weights
from ray_job.models.auto.configuration import check_release
from tests.models.auto.families import FAMILIES, write

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    write("llava", folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of a small model to break."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def load(folder: Path) -> Any:
    return weights.load(folder, dtype=torch.float32)


def change(folder: Path, changed: Callable[[dict[str, Tensor]], Mapping[str, Tensor | None]]) -> None:
    """Writes the weights with some of them other; those of None are left out."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    tensors |= changed(tensors)  # type: ignore[arg-type]
    save_file({name: each for name, each in tensors.items() if each is not None}, folder / WEIGHTS, {"format": "pt"})


def configure(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def test_a_release_whose_models_were_not_run_here_is_refused() -> None:
    for version in ("5.23.0", "5.30.1", "6.0.0.dev0"):
        check_release(version)
    for version in ("5.22.4", "5.9.0", "4.57.1"):
        with pytest.raises(ModelError, match=re.escape(f"transformers {version} is too old")):
            check_release(version)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_weight_is_read_and_is_a_page_of_its_file(name: str, tmp_path: Path) -> None:
    _, saved = write(name, tmp_path)
    model = load(tmp_path)
    tensors, expected = model.state_dict(), saved.state_dict()
    assert tensors.keys() == expected.keys()
    assert [key for key in tensors if not torch.equal(tensors[key], expected[key])] == []
    maps = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    pages = [range(*(int(end, 16) for end in each.split("-"))) for each in maps]
    apart = [key for key, each in model.named_parameters() if not any(each.data_ptr() in page for page in pages)]
    assert apart == []
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_weights_are_read_in_the_dtype_asked_for(whole: Path) -> None:
    model = weights.load(whole, dtype=torch.bfloat16, attention="eager")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.get_decoder().config._attn_implementation == "eager"


def test_shards_are_read_like_one_file(folder: Path, whole: Path) -> None:
    split(folder)
    tensors, expected = load(folder).state_dict(), load(whole).state_dict()
    assert [key for key in expected if not torch.equal(tensors[key], expected[key])] == []


def split(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, kept in shards.items():
        save_file({name: tensors[name] for name in kept}, folder / file, {"format": "pt"})
    (folder / WEIGHTS).unlink()
    weight_map = {name: file for file, kept in shards.items() for name in kept}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_all_that_does_not_fit_is_listed_with_its_file(folder: Path) -> None:
    names = list(load_file(folder / WEIGHTS))
    head = next(name for name in names if name.endswith("lm_head.weight"))
    layer = next(name for name in names if name.endswith("layers.1.mlp.up_proj.weight"))
    change(folder, lambda old: {head: None, layer: old[layer][:-1].clone(), "model.extra.weight": torch.ones(3)})
    with pytest.raises(ModelError) as raised:
        load(folder)
    message = str(raised.value)
    assert message.splitlines()[0].startswith(f"{folder}: 3 tensors do not fit config.json; use the weights and")
    assert re.search(r"missing: lm_head\.weight \(384, 64\)", message)
    assert re.search(
        r"shape in model\.safetensors: \S+layers\.1\.mlp\.up_proj\.weight is \(95, 64\), not \(96, 64\)", message
    )
    assert re.search(r"unexpected in model\.safetensors: model\.extra\.weight", message)


def test_a_tied_head_may_be_left_out(tmp_path: Path) -> None:
    _, saved = write("qwen2_vl", tmp_path)
    configure(tmp_path, tie_word_embeddings=True)
    config = json.loads((tmp_path / "config.json").read_text())
    configure(tmp_path, text_config={**config["text_config"], "tie_word_embeddings": True})
    change(tmp_path, lambda old: {name: None for name in old if name.endswith("lm_head.weight")})
    model = load(tmp_path)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert torch.equal(model.lm_head.weight, saved.get_input_embeddings().weight)


def _without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def _cut(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def _without_a_shard(folder: Path) -> None:
    split(folder)
    (folder / "b.safetensors").unlink()


def _twice(folder: Path) -> None:
    split(folder)
    tensors = load_file(folder / "a.safetensors")
    save_file({**load_file(folder / "b.safetensors"), **tensors}, folder / "b.safetensors", {"format": "pt"})


def _of_integers(folder: Path) -> None:
    change(folder, lambda old: {next(iter(old)): torch.ones(3, dtype=torch.int8)})


def _without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (_without_weights, r"holds neither model\.safetensors nor model\.safetensors\.index\.json"),
    "pickles": (_pickled, r"only as pytorch_model\.bin\. These are pickles.* convert them to model\.safetensors"),
    "cut": (_cut, r"model\.safetensors is not a complete safetensors file .*download the model's files again"),
    "no shard": (_without_a_shard, r"names files that are not there: b\.safetensors"),
    "twice": (_twice, r"in two files, a\.safetensors and b\.safetensors: "),
    "integers": (_of_integers, r"dtype in model\.safetensors: \S+ is I8; without a quantization_config"),
    "no config": (_without_config, r"config\.json does not exist"),
    "broken config": (_broken_config, r"config\.json cannot be read as JSON: line 1, column 2"),
    "no type": (lambda folder: configure(folder, model_type=None), r"gives no model_type; give the folder of a whole"),
    "odd type": (lambda folder: configure(folder, model_type=3), r"gives 3 as model_type"),
    "unknown": (
        lambda folder: configure(folder, model_type="minicpmv", auto_map={"AutoConfig": "own.Config"}),
        rf"transformers {re.escape(transformers.__version__)} does not know the model_type 'minicpmv'; install a "
        r"release that does, or use another model\. Python code that comes with a model is never run",
    ),
    "text": (lambda folder: configure(folder, model_type="llama"), r"'llama' is no vision-language model"),
    "elsewhere": (
        lambda folder: configure(folder, transformers_weights="../pytorch_model.bin"),
        r"transformers_weights names weights of its own; remove it",
    ),
    "senseless": (
        lambda folder: configure(folder, text_config={"model_type": "llama", "hidden_size": "wide"}),
        r"config\.json: transformers .* cannot use it \(\w+: .*hidden_size.*download the model's files again",
    ),
    "impossible": (
        lambda folder: configure(folder, text_config={"model_type": "llama", "hidden_act": "softly"}),
        r"cannot load it \(\w+: .*softly.*download the model's files again",
    ),
    "an adapter": (
        lambda folder: (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}'),
        r"holds adapter_config\.json: give the folder of the whole model as model\.path, and this one as model\.ada",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_loaded_is_said_with_its_file(
    what: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    breaks, expected = BROKEN[what]
    breaks(folder)
    with pytest.raises(ModelError, match=re.compile(expected, re.DOTALL)) as raised:
        load(folder)
    assert str(folder) in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_code_that_comes_with_a_model_is_not_run(folder: Path) -> None:
    """For a type that the library knows, its own class is used."""
    (folder / "own.py").write_text("raise SystemExit('run')")
    configure(folder, auto_map={"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model"})
    assert type(load(folder)).__module__ == "transformers.models.llava.modeling_llava"
