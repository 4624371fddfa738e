"""Reading and refusing configurations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_job.errors import ModelError
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig, VisionConfig

from .oracle import read_json

ROPE = read_json("rope.json")


def official_dict(**changes: Any) -> dict[str, Any]:
    """A small configuration with the official keys."""
    found = {
        "model_type": "phi3_v",
        "architectures": ["Phi3VForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "vocab_size": 424,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
        "sliding_window": 131072,
        "pad_token_id": 360,
        "img_processor": {
            "image_dim_out": 16,
            "num_img_tokens": 4,
            "name": "clip_vision_model",
            "vision_config": {"image_size": 56, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        },
    }
    return {**found, **changes}


def test_official_phi3_vision(official: Path) -> None:
    config = Phi3VisionConfig.from_pretrained(official)
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (32064, 3072, 8192)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (32, 32, 32)
    assert (config.max_position_embeddings, config.original_max_position_embeddings) == (131072, 4096)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 32000)
    assert (config.head_dim, config.tokens_per_crop_side, config.merged_dim) == (96, 12, 4096)
    assert config.sliding_window == 131072
    assert config.short_factor == tuple(ROPE["phi3"]["short_factor"])
    assert config.long_factor == tuple(ROPE["phi3"]["long_factor"])
    assert config.vision == VisionConfig()
    written = config.to_dict()
    found = json.loads((official / "config.json").read_text())
    ours = {"eos_token_id", "pad_token_id"}  # absent from the file: a default of the official class
    assert {key: found[key] for key in written if key in found} == {
        key: value for key, value in written.items() if key in found
    }
    assert set(written) - set(found) <= ours


def test_official_phi35_vision(official: Path) -> None:
    found = json.loads((official / "config.json").read_text())
    factors = {name: ROPE["phi35"][name] for name in ("short_factor", "long_factor")}
    for kind in ("su", "longrope"):
        changes = {"rope_scaling": {"type": kind, **factors}, "sliding_window": 262144}
        config = Phi3VisionConfig.from_dict({**found, **changes})
        assert config.long_factor == tuple(factors["long_factor"])


def test_round_trip(tmp_path: Path) -> None:
    plain = {"rope_scaling": None, "sliding_window": None, "eos_token_id": [32000, 32007], "tie_word_embeddings": True}
    for found in (official_dict(), official_dict(**plain), {"model_type": "phi3_v"}):
        config = Phi3VisionConfig.from_dict(found)
        config.save_pretrained(tmp_path)
        assert Phi3VisionConfig.from_pretrained(tmp_path) == config
        assert Phi3VisionConfig.from_dict(config.to_dict()) == config


def test_rope_parameters_of_newer_transformers() -> None:
    found = official_dict()
    scaling = found.pop("rope_scaling")
    theta, original = found.pop("rope_theta"), found.pop("original_max_position_embeddings")
    newer = {"rope_type": "longrope", "rope_theta": theta, "original_max_position_embeddings": original}
    found["rope_parameters"] = {**newer, **{key: scaling[key] for key in scaling if key != "type"}}
    assert Phi3VisionConfig.from_dict(found) == Phi3VisionConfig.from_dict(official_dict())


def test_extension_carries_the_tower() -> None:
    config = Phi3VisionConfig.from_dict(official_dict())
    assert config.vision == VisionConfig(56, 14, 16, 4096, 2, 2)
    assert config.tokens_per_crop_side == 2


def test_long_is_decided_by_the_rows_length() -> None:
    config = Phi3VisionConfig.from_dict(official_dict())
    assert [config.is_long(length) for length in (1, 4096, 4097)] == [False, False, True]
    assert not Phi3VisionConfig().is_long(10**6)


def vision(**changes: Any) -> dict[str, Any]:
    found = official_dict()["img_processor"]
    return {"img_processor": {**found, "vision_config": {**found["vision_config"], **changes}}}


def scaling(**changes: Any) -> dict[str, Any]:
    return {"rope_scaling": {**official_dict()["rope_scaling"], **changes}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "phi3"}, "model_type is 'phi3'; allowed: 'phi3_v'"),
        ({"hidden_size": 0}, "hidden_size is 0; allowed: a whole number above 0"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2'"),
        ({"hidden_size": 66}, "hidden_size is 66; allowed: an even number"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; allowed: a divisor of 4"),
        ({"head_dim": 8}, "head_dim is 8; allowed: 16"),
        ({"attention_bias": True}, "attention_bias is True; allowed: False"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        (scaling(type="yarn"), "rope_scaling.type is 'yarn'; allowed: 'su' or 'longrope'"),
        (scaling(short_factor=[1.0]), "short_factor length is 1; allowed: 8, half of head_dim"),
        (scaling(long_factor=[0.0] * 8), "long_factor is .*; allowed: numbers above 0"),
        (scaling(long_factor=None), "rope_scaling.long_factor is None; allowed: a list"),
        ({"embd_layer": {"hd_transform_order": "glb_sub"}}, "embd_layer.hd_transform_order is 'glb_sub'"),
        ({"img_processor": {"layer_idx": -1}}, "img_processor.layer_idx is -1; allowed: -2"),
        ({"img_processor": {"model_name": "other/clip"}}, "img_processor.model_name is 'other/clip'"),
        ({"img_processor": {"image_dim_out": 32}}, "img_processor.image_dim_out is 32; allowed: 1024"),
        (vision(image_size=50), "vision_config.image_size is 50; allowed: a multiple"),
        (vision(num_hidden_layers=1), "vision_config.num_hidden_layers is 1; allowed: 2 or more"),
        (vision(num_channels=1), "vision_config.num_channels is 1; allowed: 3"),
        (vision(hidden_sise=16), "hidden_sise is not a known field; did you mean hidden_size"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Phi3VisionConfig.from_dict(official_dict(**changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "does not exist"), ("{", "cannot be read"), ("[]", "a JSON object"), ("{}", "model_type is None")],
)
def test_broken_files(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        Phi3VisionConfig.from_pretrained(tmp_path)


def test_a_string_for_a_number_is_a_model_error(tmp_path: Path) -> None:
    changes = scaling(long_factor=["x"] * 8)
    (tmp_path / "config.json").write_text(json.dumps(official_dict(**changes)))
    with pytest.raises(ModelError, match=r"config\.json: long_factor is 'x'; allowed: numbers above 0"):
        Phi3VisionConfig.from_pretrained(tmp_path)


def test_preparation_imports_no_torch() -> None:
    modules = "configuration, image_processing, processor"
    code = (
        f"import sys, ray_job.prompts.parts, ray_job.models.hub; from ray_job.models.phi3_vision import {modules}; "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
