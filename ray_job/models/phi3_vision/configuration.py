"""The shape of a Phi-3-Vision model, read from and written to its `config.json`.

Knows the official key names and nothing of torch, so that the planner, the spec and the prepare workers can import
it. It refuses a configuration that the model would compute wrongly, rather than ignore a key.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_job.errors import ModelError
from ray_job.models.json_file import read_json_object
from ray_job.models.phi3_vision.config_fields import (
    MAX_LAYERS,
    FieldError,
    is_count,
    is_number,
    require,
    require_above_zero,
    require_activation,
    require_counts,
    require_fixed,
    section,
)
from ray_job.models.phi3_vision.vision_config import VisionConfig
from ray_job.models.quantization import refuse_quantized

__all__ = ["FILE", "MODEL_TYPE", "Phi3VisionConfig", "VisionConfig"]

FILE = "config.json"
MODEL_TYPE = "phi3_v"
CLIP_NAME = "openai/clip-vit-large-patch14-336"

# What the official code can be configured to do but no Phi-3-Vision checkpoint does. Only these values are built.
_EMBED_LAYER = {
    "embedding_cls": "image",
    "hd_transform_order": "sub_glb",
    "projection_cls": "mlp",
    "use_hd_transform": True,
    "with_learnable_separator": True,
}
_FIXED = {
    "model_type": MODEL_TYPE,
    "attention_bias": False,
    "partial_rotary_factor": 1.0,
}
_IMG_PROCESSOR_FIXED = {"name": "clip_vision_model", "layer_idx": -2, "type_feature": "patch"}
# Read from another place of the file than the top.
_ELSEWHERE = frozenset({"vision", "short_factor", "long_factor"})
_DECODER_COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "original_max_position_embeddings",
)


@dataclass(frozen=True)
class Phi3VisionConfig:
    """Decoder, rotary tables and vision tower. Defaults are those of the official configuration class.

    `short_factor` and `long_factor` are both None for plain RoPE. `sliding_window` None means no window. With
    `tie_word_embeddings` the head is the token embedding: one matrix, held once.
    """

    vocab_size: int = 32064
    hidden_size: int = 3072
    intermediate_size: int = 8192
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 4096
    original_max_position_embeddings: int = 4096
    rope_theta: float = 10000.0
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    hidden_act: str = "silu"
    initializer_range: float = 0.02
    sliding_window: int | None = None
    bos_token_id: int = 1
    eos_token_id: int | tuple[int, ...] = 32000
    pad_token_id: int = 32000
    tie_word_embeddings: bool = False
    vision: VisionConfig = field(default_factory=VisionConfig)

    def __post_init__(self) -> None:
        require_counts(self, _DECODER_COUNTS)
        layers = self.num_hidden_layers
        require(is_count(layers, MAX_LAYERS), "num_hidden_layers", layers, f"a whole number from 1 to {MAX_LAYERS}")
        require_above_zero(self, ("rms_norm_eps", "rope_theta", "initializer_range"))
        require_activation(self.hidden_act)
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        even = f"an even number of channels for each of the {heads} heads"
        require(self.hidden_size % (2 * heads) == 0, "hidden_size", self.hidden_size, even)
        require(heads % kv_heads == 0, "num_key_value_heads", kv_heads, f"a divisor of {heads}")
        if self.sliding_window is not None:
            require_counts(self, ("sliding_window",))
        tied = self.tie_word_embeddings
        require(isinstance(tied, bool), "tie_word_embeddings", tied, "true or false")
        self._check_token_ids()
        self._check_factors()

    def _check_token_ids(self) -> None:
        several = self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)
        for name, values in (("bos", (self.bos_token_id,)), ("eos", several), ("pad", (self.pad_token_id,))):
            for value in values:
                is_id = isinstance(value, int) and not isinstance(value, bool)
                require(is_id, f"{name}_token_id", value, "a token id, a whole number")

    def _check_factors(self) -> None:
        both = (self.short_factor is None) == (self.long_factor is None)
        require(both, "rope_scaling", "one factor list", "both short_factor and long_factor, or neither")
        for name in ("short_factor", "long_factor"):
            factors = getattr(self, name)
            if factors is None:
                continue
            half = self.head_dim // 2
            require(len(factors) == half, f"{name} length", len(factors), f"{half}, half of head_dim")
            for factor in factors:
                require(is_number(factor) and factor > 0, name, factor, "numbers above 0")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def tokens_per_crop_side(self) -> int:
        """Tokens along one side of a crop after 2×2 patches merge: 12 officially."""
        return self.vision.image_size // self.vision.patch_size // 2

    @property
    def merged_dim(self) -> int:
        """Channels of a merged 2×2 patch, the projector's input: 4096 officially."""
        return 4 * self.vision.hidden_size

    def is_long(self, num_tokens: int) -> bool:
        """Whether a row of `num_tokens` tokens, prompt and answer so far, is rotated with the long factors."""
        return self.long_factor is not None and num_tokens > self.original_max_position_embeddings

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Phi3VisionConfig:
        """Reads the official `config.json` of Phi-3-vision and Phi-3.5-vision unchanged.

        Our extension `img_processor.vision_config` carries the tower's shape where it is not the official
        one. Raises ModelError for a value the model would compute wrongly.
        """
        require("model_type" in found, "model_type", None, repr(MODEL_TYPE))
        require_fixed(found, _FIXED)
        require_fixed(section(found, "embd_layer"), _EMBED_LAYER, "embd_layer.")
        decoder = {
            item.name: found[item.name]
            for item in dataclasses.fields(cls)
            if item.name not in _ELSEWHERE and found.get(item.name) is not None
        }
        if isinstance(decoder.get("eos_token_id"), list):
            decoder["eos_token_id"] = tuple(decoder["eos_token_id"])
        decoder.setdefault("num_key_value_heads", decoder.get("num_attention_heads", cls.num_attention_heads))
        decoder.update(_read_rope(found))
        img_processor = section(found, "img_processor")
        config = cls(**decoder, vision=_read_vision(img_processor))
        require_fixed(found, {"head_dim": config.head_dim})
        _check_picture_part(img_processor, config)
        return config

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Phi3VisionConfig:
        """Reads `config.json` in `folder`. Raises ModelError if it is absent, not JSON or not supported."""
        path = Path(folder) / FILE
        found = read_json_object(path, "give a folder that holds a Phi-3-Vision model")
        refuse_quantized(path, found)
        try:
            return cls.from_dict(found)
        except FieldError as error:
            raise ModelError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The official key names; `from_dict` gives back an equal object."""
        found = dataclasses.asdict(self)
        short, long, vision = found.pop("short_factor"), found.pop("long_factor"), found.pop("vision")
        if isinstance(self.eos_token_id, tuple):
            found["eos_token_id"] = list(self.eos_token_id)
        scaling = {"type": "su", "short_factor": list(short), "long_factor": list(long)} if short else None
        img_processor: dict[str, Any] = {
            "image_dim_out": self.vision.hidden_size,
            "model_name": CLIP_NAME,
            "name": "clip_vision_model",
            "num_img_tokens": self.tokens_per_crop_side**2,
        }
        if self.vision != VisionConfig():
            img_processor["vision_config"] = vision
        return {
            "architectures": ["Phi3VForCausalLM"],
            "model_type": MODEL_TYPE,
            **found,
            "rope_scaling": scaling,
            "embd_layer": dict(_EMBED_LAYER),
            "img_processor": img_processor,
        }

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes `config.json` in `folder`, which is made if need be."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True)
        (path / FILE).write_text(text + "\n", encoding="utf-8")


def _read_rope(found: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary fields. Newer transformers write `rope_parameters` and `rope_type` for the same things."""
    scaling = section(found, "rope_scaling") or section(found, "rope_parameters")
    if not scaling:
        return {}
    require_fixed(scaling, {"partial_rotary_factor": 1.0}, "rope_scaling.")
    fields = {
        name: scaling[name]
        for name in ("rope_theta", "original_max_position_embeddings")
        if scaling.get(name) is not None and found.get(name) is None
    }
    kind = scaling.get("rope_type", scaling.get("type"))
    require(kind in ("su", "longrope", "default"), "rope_scaling.type", kind, "'su' or 'longrope'")
    if kind == "default":
        return fields
    for name in ("short_factor", "long_factor"):
        factors = scaling.get(name)
        require(isinstance(factors, list), f"rope_scaling.{name}", factors, "a list of numbers above 0")
        fields[name] = tuple(float(factor) if is_number(factor) else factor for factor in scaling[name])
    return fields


def _read_vision(img_processor: Mapping[str, Any]) -> VisionConfig:
    require_fixed(img_processor, _IMG_PROCESSOR_FIXED, "img_processor.")
    if img_processor.get("vision_config") is None:
        only = f"{CLIP_NAME!r}, or give img_processor.vision_config"
        name = img_processor.get("model_name", CLIP_NAME)
        require(name == CLIP_NAME, "img_processor.model_name", name, only)
        return VisionConfig()
    return VisionConfig.from_dict(section(img_processor, "vision_config", "img_processor."))


def _check_picture_part(img_processor: Mapping[str, Any], config: Phi3VisionConfig) -> None:
    expected = {
        "image_dim_out": config.vision.hidden_size,
        "num_img_tokens": config.tokens_per_crop_side**2,
    }
    for name, only in expected.items():
        found = img_processor.get(name, only)
        allowed = f"{only}, which is what img_processor.vision_config gives (the official tower where absent)"
        require(found == only, f"img_processor.{name}", found, allowed)
