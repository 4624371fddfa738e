"""The shape of the CLIP vision tower, as `config.json` may carry it under `img_processor.vision_config`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_job.models.phi3_vision.config_fields import (
    MAX_LAYERS,
    FieldError,
    is_count,
    require,
    require_above_zero,
    require_activation,
    require_counts,
    require_fixed,
)

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
        require_counts(self, counts, "vision_config.")
        require_above_zero(self, ("layer_norm_eps",), "vision_config.")
        require_activation(self.hidden_act, "vision_config.")
        require(
            is_count(self.num_hidden_layers, MAX_LAYERS) and self.num_hidden_layers >= 2,
            "vision_config.num_hidden_layers",
            self.num_hidden_layers,
            f"2 or more, at most {MAX_LAYERS}, as the features come from the last layer but one",
        )
        require(
            self.image_size % (2 * self.patch_size) == 0,
            "vision_config.image_size",
            self.image_size,
            f"a multiple of twice patch_size, {2 * self.patch_size}, as 2×2 patches merge into one token",
        )
        require(
            self.hidden_size % self.num_attention_heads == 0,
            "vision_config.hidden_size",
            self.hidden_size,
            f"a multiple of num_attention_heads, {self.num_attention_heads}",
        )

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> VisionConfig:
        """The tower from a CLIP vision configuration. Raises ModelError for a key it does not know."""
        require_fixed(found, {"num_channels": 3}, "vision_config.")
        names = [item.name for item in dataclasses.fields(cls)]
        for key in found:
            if key not in names and key not in _CLIP_INERT and key != "num_channels":
                near = difflib.get_close_matches(key, names, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise FieldError(f"img_processor.vision_config.{key} is not a known field{hint}")
        return cls(**{name: found[name] for name in names if found.get(name) is not None})
