"""The shape of a Phi-3-Vision model, read from and written to its `config.json`.

Knows the official key names and nothing of torch or transformers, so the planner, the spec and the prepare
workers can import it. It refuses a configuration the model would compute wrongly, rather than ignore a key.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_job.errors import ModelError

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
    "tie_word_embeddings": False,
    "attention_bias": False,
    "partial_rotary_factor": 1.0,
}
_IMG_PROCESSOR_FIXED = {"name": "clip_vision_model", "layer_idx": -2, "type_feature": "patch"}
# Keys of a CLIP configuration that cannot change an answer.
_CLIP_INERT = frozenset(
    {
        "attention_dropout",
        "dropout",
        "initializer_factor",
        "initializer_range",
        "model_type",
        "projection_dim",
        "architectures",
        "torch_dtype",
        "dtype",
        "transformers_version",
    }
)

_DECODER_COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "original_max_position_embeddings",
)


def _require(condition: bool, field_name: str, value: object, allowed: str) -> None:
    if not condition:
        raise ModelError(f"config.json: {field_name} is {value!r}; allowed: {allowed}")


def _require_positive(config: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(config, name)
        is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
        _require(is_count, name, value, "a whole number above 0")


def _check_fixed(found: Mapping[str, Any], fixed: Mapping[str, Any], prefix: str = "") -> None:
    for name, only in fixed.items():
        if name in found:
            _require(found[name] == only, prefix + name, found[name], repr(only))


@dataclass(frozen=True)
class VisionConfig:
    """The CLIP vision tower. The defaults are ViT-L/14 at 336 pixels, which the official code always builds."""

    image_size: int = 336
    patch_size: int = 14
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"

    def __post_init__(self) -> None:
        counts = ("image_size", "patch_size", "hidden_size", "intermediate_size", "num_attention_heads")
        _require_positive(self, counts)
        _require(
            isinstance(self.num_hidden_layers, int) and self.num_hidden_layers >= 2,
            "vision_config.num_hidden_layers",
            self.num_hidden_layers,
            "2 or more, as the features come from the last layer but one",
        )
        _require(
            self.image_size % (2 * self.patch_size) == 0,
            "vision_config.image_size",
            self.image_size,
            f"a multiple of twice patch_size, {2 * self.patch_size}, as 2×2 patches merge into one token",
        )
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            "vision_config.hidden_size",
            self.hidden_size,
            f"a multiple of num_attention_heads, {self.num_attention_heads}",
        )

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> VisionConfig:
        """The tower from a CLIP vision configuration. Raises ModelError for a key it does not know."""
        _check_fixed(found, {"num_channels": 3}, "vision_config.")
        names = [item.name for item in dataclasses.fields(cls)]
        for key in found:
            if key not in names and key not in _CLIP_INERT and key != "num_channels":
                near = difflib.get_close_matches(key, names, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ModelError(f"config.json: img_processor.vision_config.{key} is not a known field{hint}")
        return cls(**{name: found[name] for name in names if name in found})


@dataclass(frozen=True)
class Phi3VisionConfig:
    """Decoder, rotary tables and vision tower. Defaults are those of the official configuration class.

    `short_factor` and `long_factor` are both None for plain RoPE. `sliding_window` None means no window.
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
    vision: VisionConfig = field(default_factory=VisionConfig)

    def __post_init__(self) -> None:
        _require_positive(self, _DECODER_COUNTS)
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        even = f"an even number of channels for each of the {heads} heads"
        _require(self.hidden_size % (2 * heads) == 0, "hidden_size", self.hidden_size, even)
        _require(heads % kv_heads == 0, "num_key_value_heads", kv_heads, f"a divisor of {heads}")
        if self.sliding_window is not None:
            _require_positive(self, ("sliding_window",))
        self._check_factors()

    def _check_factors(self) -> None:
        both = (self.short_factor is None) == (self.long_factor is None)
        _require(both, "rope_scaling", "one factor list", "both short_factor and long_factor, or neither")
        for name in ("short_factor", "long_factor"):
            factors = getattr(self, name)
            if factors is None:
                continue
            half = self.head_dim // 2
            _require(len(factors) == half, f"{name} length", len(factors), f"{half}, half of head_dim")
            _require(all(factor > 0 for factor in factors), name, factors, "numbers above 0")

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
        _require("model_type" in found, "model_type", None, repr(MODEL_TYPE))
        _check_fixed(found, _FIXED)
        _check_fixed(found.get("embd_layer") or {}, _EMBED_LAYER, "embd_layer.")
        decoder = {
            item.name: found[item.name]
            for item in dataclasses.fields(cls)
            if item.name != "vision" and found.get(item.name) is not None
        }
        if isinstance(decoder.get("eos_token_id"), list):
            decoder["eos_token_id"] = tuple(decoder["eos_token_id"])
        decoder.setdefault("num_key_value_heads", decoder.get("num_attention_heads", cls.num_attention_heads))
        decoder.update(_read_rope(found))
        config = cls(**decoder, vision=_read_vision(found.get("img_processor") or {}))
        _check_fixed(found, {"head_dim": config.head_dim})
        _check_picture_part(found.get("img_processor") or {}, config)
        return config

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Phi3VisionConfig:
        """Reads `config.json` in `folder`. Raises ModelError if it is absent, not JSON or not supported."""
        path = Path(folder) / "config.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelError(f"{path} does not exist; give a folder that holds a Phi-3-Vision model") from None
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from error
        _require(isinstance(found, dict), "the file", type(found).__name__, "a JSON object")
        try:
            return cls.from_dict(found)
        except (TypeError, ValueError) as error:  # a string where a number belongs
            raise ModelError(f"{path}: a field has the wrong type: {error}") from error

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
            "tie_word_embeddings": False,
            "embd_layer": dict(_EMBED_LAYER),
            "img_processor": img_processor,
        }

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes `config.json` in `folder`, which is made if need be."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True)
        (path / "config.json").write_text(text + "\n", encoding="utf-8")


def _read_rope(found: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary fields. Newer transformers write `rope_parameters` and `rope_type` for the same things."""
    scaling = found.get("rope_scaling") or found.get("rope_parameters")
    if scaling is None:
        return {}
    _check_fixed(scaling, {"partial_rotary_factor": 1.0}, "rope_scaling.")
    fields = {
        name: scaling[name]
        for name in ("rope_theta", "original_max_position_embeddings")
        if name in scaling and name not in found
    }
    kind = scaling.get("rope_type", scaling.get("type"))
    _require(kind in ("su", "longrope", "default"), "rope_scaling.type", kind, "'su' or 'longrope'")
    if kind == "default":
        return fields
    for name in ("short_factor", "long_factor"):
        _require(isinstance(scaling.get(name), list), f"rope_scaling.{name}", scaling.get(name), "a list")
        fields[name] = tuple(float(factor) for factor in scaling[name])
    return fields


def _read_vision(img_processor: Mapping[str, Any]) -> VisionConfig:
    _check_fixed(img_processor, _IMG_PROCESSOR_FIXED, "img_processor.")
    shape = img_processor.get("vision_config")
    if shape is None:
        only = f"{CLIP_NAME!r}, or give img_processor.vision_config"
        name = img_processor.get("model_name", CLIP_NAME)
        _require(name == CLIP_NAME, "img_processor.model_name", name, only)
        return VisionConfig()
    return VisionConfig.from_dict(shape)


def _check_picture_part(img_processor: Mapping[str, Any], config: Phi3VisionConfig) -> None:
    expected = {
        "image_dim_out": config.vision.hidden_size,
        "num_img_tokens": config.tokens_per_crop_side**2,
    }
    for name, only in expected.items():
        found = img_processor.get(name, only)
        allowed = f"{only}, which is what img_processor.vision_config gives (the official tower where absent)"
        _require(found == only, f"img_processor.{name}", found, allowed)
