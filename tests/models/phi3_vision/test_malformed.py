"""Model folders with one broken file: a ModelError that names the file, says the fault and what to do; no traceback."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ray_job.errors import ModelError
from ray_job.models.phi3_vision import weights
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor

INDEX = "model.safetensors.index.json"
JSON_FILES = ("config.json", "preprocessor_config.json", "tokenizer.json")
MALFORMED = {
    "empty": b"",
    "an array": b"[]",
    "null": b"null",
    "UTF-16": "{}".encode("utf-16"),
    "binary": bytes(range(256)),
    "too deep": b'{"a":' * 50_000,
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "half a character": rb'{"model_type": "\ud800"}',
}


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to break."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture
def sharded(folder: Path) -> Path:
    """The same in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, kept in shards.items():
        save_file({name: tensors[name] for name in kept}, folder / file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, kept in shards.items() for name in kept}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def load(folder: Path) -> None:
    weights.load(folder, dtype=torch.float32)


def process(folder: Path) -> None:
    Phi3VisionProcessor.from_pretrained(folder)


def refused(folder: Path, name: str, message: str, read: Callable[[Path], object] = load) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        read(folder)
    said = str(caught.value)
    assert str(folder / name) in said
    said.encode()


@pytest.mark.parametrize("kind", MALFORMED)
@pytest.mark.parametrize("name", JSON_FILES)
def test_json_files(name: str, kind: str, folder: Path) -> None:
    (folder / name).write_bytes(MALFORMED[kind])
    refused(folder, name, "JSON", process)
    if name != "tokenizer.json":
        refused(folder, name, "JSON")


@pytest.mark.parametrize("kind", MALFORMED)
def test_an_index_that_is_no_json(kind: str, sharded: Path) -> None:
    (sharded / INDEX).write_bytes(MALFORMED[kind])
    refused(sharded, INDEX, "JSON")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "weight_map is absent"),
        ({"weight_map": None}, "weight_map is absent"),
        ({"weight_map": {}}, "weight_map is empty"),
        ({"weight_map": []}, "weight_map is a JSON array"),
        ({"weight_map": "a.safetensors"}, "weight_map is a JSON string"),
        ({"weight_map": {"x": None}}, "gives None for 'x'"),
        ({"weight_map": {"x": 5}}, "gives 5 for 'x'"),
        ({"weight_map": {"x": ["a.safetensors"]}}, "for 'x'"),
        ({"weight_map": {"x": {}, "y": "a.safetensors"}}, "for 'x'"),
        ({"weight_map": {"x": ""}}, "gives '' for 'x'"),
        ({"weight_map": {"x": "../model/a.safetensors"}}, "in the same folder"),
        ({"weight_map": {"x": "/etc/a.safetensors"}}, "in the same folder"),
        ({"weight_map": {"x": "sub/a.safetensors"}}, "in the same folder"),
        ({"weight_map": {"x": "..\\a.safetensors"}}, "in the same folder"),
        ({"weight_map": {"x": "config.json"}}, r"name of a \.safetensors file"),
        ({"weight_map": {"x": "pytorch_model.bin"}}, r"name of a \.safetensors file"),
        ({"weight_map": {"x": "a\0.safetensors"}}, "in the same folder"),
        ({"weight_map": {"x": "c.safetensors"}}, "names files that are not there: c.safetensors"),
        ({"weight_map": {"x": "a" * 300 + ".safetensors"}}, "File name too long"),
    ],
)
def test_an_index_of_wrong_entries(content: Mapping[str, Any], message: str, sharded: Path) -> None:
    (sharded / INDEX).write_text(json.dumps(content))
    refused(sharded, INDEX, message)


def test_an_index_is_a_folder(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    (sharded / INDEX).mkdir()
    refused(sharded, INDEX, "not a regular file")


def _header(fields: object, data: bytes = b"") -> bytes:
    header = json.dumps(fields).encode()
    return struct.pack("<Q", len(header)) + header + data


BROKEN_WEIGHTS = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "text": b"this is no safetensors file",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    "a header of 2⁶³ bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header that is no JSON": struct.pack("<Q", 2) + b"{[",
    "a header that is an array": _header([]),
    "a tensor of no type": _header({"x": {"shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
    "offsets beyond the end": _header({"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}, b"\0" * 4),
    "too little data for its shape": _header({"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}, b"\0" * 4),
    "a zip, as of torch.save": b"PK\x03\x04" + b"\0" * 60,
}


@pytest.mark.parametrize("kind", BROKEN_WEIGHTS)
@pytest.mark.parametrize("name", ["model.safetensors", "b.safetensors"])
def test_files_that_are_no_safetensors(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue("folder" if name == "model.safetensors" else "sharded")
    (folder / name).write_bytes(BROKEN_WEIGHTS[kind])
    refused(folder, name, "not a complete safetensors file .*; download the model's files again")


def test_a_folder_for_a_safetensors_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    refused(folder, "model.safetensors", "not a complete safetensors file")


def test_a_truncated_shard(sharded: Path) -> None:
    data = (sharded / "b.safetensors").read_bytes()
    (sharded / "b.safetensors").write_bytes(data[:-1])
    refused(sharded, "b.safetensors", "not a complete safetensors file")


def test_a_tensor_in_two_files(sharded: Path) -> None:
    """Which of them counts is not to be guessed."""
    one, other = load_file(sharded / "a.safetensors"), load_file(sharded / "b.safetensors")
    name = next(iter(one))
    save_file({**other, name: one[name] + 1}, sharded / "b.safetensors")
    with pytest.raises(ModelError, match=rf"in two files, a\.safetensors and b\.safetensors: {name}"):
        load(sharded)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.bool])
def test_quantised_weights_are_not_taken_for_plain_ones(dtype: torch.dtype, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(dtype)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"dtype in model\.safetensors: lm_head\.weight is (I8|F8_E4M3|BOOL)"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; allowed: a JSON object"),
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\]"),
        ({"rope_scaling": True}, "rope_scaling is True"),
        ({"rope_parameters": 3, "rope_scaling": None}, "rope_parameters is 3"),
        ({"embd_layer": "image"}, "embd_layer is 'image'"),
        ({"embd_layer": ["x"]}, "embd_layer is"),
        ({"img_processor": "clip"}, "img_processor is 'clip'"),
        ({"img_processor": {"vision_config": "x"}}, "img_processor.vision_config is 'x'"),
        ({"img_processor": {"vision_config": [1]}}, "img_processor.vision_config is"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": 64.0}, "hidden_size is 64.0"),
        ({"hidden_size": 10**30}, "at most 16,777,216"),
        ({"vocab_size": [1]}, r"vocab_size is \[1\]"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; allowed: a whole number from 1 to 1000"),
        ({"intermediate_size": 2**24, "hidden_size": 2**24}, "head_dim|factor length|torch cannot hold"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'; allowed: a number above 0"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is 1000"),
        ({"rope_theta": "x"}, "rope_theta is 'x'"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"hidden_act": "magic"}, "hidden_act is 'magic'; allowed: one of silu"),
        ({"hidden_act": ["silu"]}, r"hidden_act is \['silu'\]"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'; allowed: a token id"),
        ({"eos_token_id": [1, None]}, "eos_token_id is None"),
        ({"eos_token_id": {"id": 1}}, "eos_token_id is"),
        ({"bos_token_id": 1.5}, "bos_token_id is 1.5"),
        ({"pad_token_id": True}, "pad_token_id is True"),
        ({"sliding_window": "wide"}, "sliding_window is 'wide'"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; allowed: true or false"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
        ({"model_type": {}}, "model_type is {}"),
    ],
)
def test_config_values_of_wrong_types(changes: Mapping[str, Any], message: str, folder: Path) -> None:
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**found, **changes}))
    refused(folder, "config.json", message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_crops": True}, "num_crops is True; allowed: a whole number from 1"),
        ({"num_crops": 0}, "num_crops is 0"),
        ({"num_crops": "16"}, "num_crops is '16'"),
        ({"num_crops": 10**30}, "num_crops is 1000"),
        ({"image_mean": "abc"}, "image_mean is 'abc'; allowed: three numbers"),
        ({"image_mean": 0.5}, "image_mean is 0.5"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean is \[0.5, 0.5\]"),
        ({"image_mean": [0.5, None, 0.5]}, "image_mean is"),
        ({"image_mean": {"r": 1, "g": 1, "b": 1}}, "image_mean is"),
        ({"image_std": [1, 1, 0]}, r"image_std is \[1, 1, 0\]; allowed: three numbers above 0"),
        ({"image_std": [1, 1, float("nan")]}, "image_std is"),
        ({"image_std": [1, 1, "1"]}, "image_std is"),
    ],
)
def test_preprocessor_values_of_wrong_types(changes: Mapping[str, Any], message: str, folder: Path) -> None:
    found = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**found, **changes}))
    refused(folder, "preprocessor_config.json", message, process)
    refused(folder, "preprocessor_config.json", message)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": None},
        {"model": []},
        {"model": "BPE"},
        {"model": {"type": "BPE", "vocab": [], "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b c d"]}},
        {"model": {"type": "Magic"}},
        {"added_tokens": {}},
        {"added_tokens": [{"id": "x"}]},
        {"added_tokens": [7]},
        {"decoder": {"type": "Magic"}},
        {"normalizer": 3},
    ],
)
def test_tokenizers_of_wrong_types(changes: Mapping[str, Any], folder: Path) -> None:
    found = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**found, **changes}))
    refused(folder, "tokenizer.json", "tokenizer.json", process)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
OFFICIAL = json.loads((Path(__file__).parent / "golden" / "tiny-mha" / "config.json").read_text())
PATHS = [(key,) for key in OFFICIAL] + [
    (key, inner) for key, value in OFFICIAL.items() if isinstance(value, dict) for inner in value
]


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), value=ANYTHING)
def test_no_value_in_config_gives_anything_but_a_model_error(
    path: tuple[str, ...], value: object, tmp_path: Path
) -> None:
    found = json.loads(json.dumps(OFFICIAL))
    target = found
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(found))
    said, config = _read(tmp_path)
    assert (config is None) == (str(tmp_path / "config.json") in said)
    said.encode()
    assert config is None or Phi3VisionConfig.from_dict(config.to_dict()) == config


def _read(folder: Path) -> tuple[str, Phi3VisionConfig | None]:
    try:
        return "", Phi3VisionConfig.from_pretrained(folder)
    except ModelError as error:
        return str(error), None
