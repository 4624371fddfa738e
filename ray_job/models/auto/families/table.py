"""Which class drives a model, by the `model_type` of its configuration."""

from __future__ import annotations

from ray_job.models.auto.families.deep_stack import DeepStack
from ray_job.models.auto.families.multimodal_rope import MultimodalRope
from ray_job.models.auto.families.seen_both_ways import ChosenPictureBlocks, PictureBlocks, PromptBlock
from ray_job.models.auto.packed import PackedAuto

FAMILIES: dict[str, type[PackedAuto]] = {
    "gemma3": PictureBlocks,
    "gemma4": ChosenPictureBlocks,
    "glm46v": MultimodalRope,
    "glm4v": MultimodalRope,
    "glm4v_moe": MultimodalRope,
    "glm_ocr": MultimodalRope,
    "paddleocr_vl": MultimodalRope,
    "paligemma": PromptBlock,
    "qwen2_5_vl": MultimodalRope,
    "qwen2_vl": MultimodalRope,
    "qwen3_vl": DeepStack,
    "qwen3_vl_moe": DeepStack,
    "shieldgemma2": PictureBlocks,
}


def family_of(model_type: str) -> type[PackedAuto]:
    """The general class, but for the few types in the table."""
    return FAMILIES.get(model_type, PackedAuto)
