"""Tiny random models of families whose processors are not needed to try their decoders: pictures are arrays of chance.

`MODELS` has, for each, how to make it and a picture's arrays, as `get_image_features` takes them, with the number of
tokens that stand for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from ray_job.rows import Picture, Sample
from ray_job.spec import GenerationParams
from tests.models.auto.decoders import IMAGE_ID, SIZES
from tests.models.auto.families import VISION

Arrays: TypeAlias = dict[str, Any]
_GRID_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 14,
    "out_hidden_size": 64,
}
_PERCEIVED = {
    "hidden_size": 64,
    "resampler_n_latents": 4,
    "resampler_depth": 1,
    "resampler_n_heads": 2,
    "num_key_value_heads": 1,
}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
_GLM_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
_IDS = {"image_token_id": IMAGE_ID, "video_token_id": IMAGE_ID + 1}
_GLM_IDS = {
    **_IDS,
    "image_start_token_id": 302,
    "image_end_token_id": 303,
    "video_start_token_id": 304,
    "video_end_token_id": 305,
}
_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
_WINDOWS = {"sliding_window": 18, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


@dataclass(frozen=True)
class Alone:
    """A model to make, and a picture of chance for it: a generator of numbers → arrays, and how many tokens."""

    make: Callable[[], PreTrainedModel]
    picture: Callable[[np.random.Generator], tuple[Arrays, int]]


def _tile(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape, dtype=np.float32)


def _square(num_tokens: int, **more: Any) -> Callable[[np.random.Generator], tuple[Arrays, int]]:
    """One picture of 56 × 56 pixels."""
    return lambda rng: ({"pixel_values": _tile(rng, 1, 3, 56, 56), **more}, num_tokens)


def _tiles(tokens_per_tile: int) -> Callable[[np.random.Generator], tuple[Arrays, int]]:
    """One to three tiles of 56 × 56 pixels."""

    def picture(rng: np.random.Generator) -> tuple[Arrays, int]:
        count = int(rng.integers(1, 4))
        return {"pixel_values": _tile(rng, count, 3, 56, 56)}, count * tokens_per_tile

    return picture


def _patches(width: int, merge: int = 2, **more: Any) -> Callable[[np.random.Generator], tuple[Arrays, int]]:
    """A table of patches of a picture of two to eight patches a side."""

    def picture(rng: np.random.Generator) -> tuple[Arrays, int]:
        rows, columns = (rng.integers(1, 5, 2) * merge).tolist()
        grid = np.array([[1, rows, columns]])
        pixels = _tile(rng, rows * columns, width)
        return {"pixel_values": pixels, "image_grid_thw": grid, **more}, rows * columns // merge**2

    return picture


def _aya_vision() -> PreTrainedModel:
    config = transformers.AyaVisionConfig(
        vision_config=transformers.SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=transformers.Cohere2Config(**SIZES, **_WINDOWS),
        image_token_index=IMAGE_ID,
    )
    return transformers.AyaVisionForConditionalGeneration(config)


def _cohere2_vision() -> PreTrainedModel:
    config = transformers.Cohere2VisionConfig(
        vision_config=transformers.SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=transformers.Cohere2Config(**SIZES, **_WINDOWS),
        image_token_id=IMAGE_ID,
        alignment_intermediate_size=64,
    )
    return transformers.Cohere2VisionForConditionalGeneration(config)


def _vipllava() -> PreTrainedModel:
    config = transformers.VipLlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**SIZES),
        image_token_index=IMAGE_ID,
        vision_feature_layers=[-2, -1],
    )
    return transformers.VipLlavaForConditionalGeneration(config)


def _paligemma2() -> PreTrainedModel:
    text = {**SIZES, "head_dim": 16, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 5.0, **_WINDOWS}
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(**VISION, vision_use_head=False, projection_dim=64).to_dict(),
        text_config=transformers.Gemma2Config(**text, final_logit_softcapping=10.0).to_dict(),
        image_token_index=IMAGE_ID,
        projection_dim=64,
        hidden_size=64,
        vocab_size=384,
    )
    return transformers.PaliGemmaForConditionalGeneration(config)


def _idefics2() -> PreTrainedModel:
    config = transformers.Idefics2Config(
        vision_config=VISION,
        perceiver_config=_PERCEIVED,
        text_config=transformers.MistralConfig(**SIZES, sliding_window=None).to_dict(),
        image_token_id=IMAGE_ID,
    )
    return transformers.Idefics2ForConditionalGeneration(config)


def _got_ocr2() -> PreTrainedModel:
    vision = {**VISION, "patch_size": 7, "output_channels": 16, "window_size": 4, "global_attn_indexes": [1]}
    config = transformers.GotOcr2Config(
        vision_config={**vision, "mlp_dim": 48},
        text_config=transformers.Qwen2Config(**SIZES).to_dict(),
        image_token_index=IMAGE_ID,
    )
    return transformers.GotOcr2ForConditionalGeneration(config)


def _lighton_ocr() -> PreTrainedModel:
    config = transformers.LightOnOcrConfig(
        vision_config={**VISION, "model_type": "pixtral", "image_size": 112, "head_dim": 16},
        text_config=transformers.Qwen3Config(**SIZES, head_dim=16).to_dict(),
        image_token_id=IMAGE_ID,
    )
    return transformers.LightOnOcrForConditionalGeneration(config)


def _deepseek_vl() -> PreTrainedModel:
    config = transformers.DeepseekVLConfig(
        vision_config=transformers.SiglipVisionConfig(**VISION, vision_use_head=False).to_dict(),
        text_config=transformers.LlamaConfig(**SIZES).to_dict(),
        image_token_id=IMAGE_ID,
    )
    return transformers.DeepseekVLForConditionalGeneration(config)


def _aria() -> PreTrainedModel:
    config = transformers.AriaConfig(
        vision_config={**VISION, "model_type": "idefics3_vision"},
        text_config={**SIZES, "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
        image_token_index=IMAGE_ID,
        projector_patch_to_query_dict={16: 4},
    )
    return transformers.AriaForConditionalGeneration(config)


def _qwen3_vl_moe() -> PreTrainedModel:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    vision = {**_GRID_VISION, "depth": 3, "patch_size": 16, "num_position_embeddings": 16}
    config = transformers.Qwen3VLMoeConfig(
        text_config={**SIZES, "num_hidden_layers": 4, "head_dim": 16, "rope_parameters": _MROPE, **experts},
        vision_config={**vision, "deepstack_visual_indexes": [0, 1]},
        **_IDS,
    )
    return transformers.Qwen3VLMoeForConditionalGeneration(config)


def _glm(config: type[Any], model: type[Any], **text: Any) -> Callable[[], PreTrainedModel]:
    def make() -> PreTrainedModel:
        made: PreTrainedModel = model(
            config(
                text_config={**SIZES, "rope_parameters": _GLM_ROPE, **text},
                vision_config={**_GRID_VISION, "image_size": 56},
                **_GLM_IDS,
            )
        )
        return made

    return make


def _exaone4_5() -> PreTrainedModel:
    config = transformers.Exaone4_5_Config(
        text_config=transformers.Exaone4Config(**SIZES, **_WINDOWS).to_dict(),
        vision_config={
            **_GRID_VISION,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "num_key_value_heads": 1,
        },
        **_IDS,
    )
    return transformers.Exaone4_5_ForConditionalGeneration(config)


def _paddleocr_vl() -> PreTrainedModel:
    config = transformers.PaddleOCRVLConfig(
        text_config={**SIZES, "head_dim": 16, "rope_parameters": _MROPE}, vision_config=VISION, **_IDS
    )
    return transformers.PaddleOCRVLForConditionalGeneration(config)


def _gemma4(**text: Any) -> PreTrainedModel:
    sizes = {**SIZES, "head_dim": 16, "global_head_dim": 32, "hidden_size_per_layer_input": 0, **_WINDOWS}
    vision = {**VISION, "num_key_value_heads": 2, "head_dim": 16, "pooling_kernel_size": 2}
    config = transformers.Gemma4Config(
        text_config={**sizes, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"], **text},
        vision_config={**vision, "patch_size": 8, "position_embedding_size": 64},
        **_IDS,
        audio_token_id=306,
    )
    return transformers.Gemma4ForConditionalGeneration(config)


def _gemma4_picture(rng: np.random.Generator) -> tuple[Arrays, int]:
    """Of 4 × 4 patches, and places for none."""
    places = np.stack(np.meshgrid(np.arange(4), np.arange(4)), axis=-1).reshape(1, 16, 2)
    return {"pixel_values": rng.random((1, 16, 192), dtype=np.float32), "image_position_ids": places}, 4


MODELS: dict[str, Alone] = {
    "aria": Alone(_aria, _square(4)),
    "aya_vision": Alone(_aya_vision, _tiles(4)),
    "cohere2_vision": Alone(_cohere2_vision, _tiles(4)),
    "deepseek_vl": Alone(_deepseek_vl, _square(16)),
    "exaone4_5": Alone(_exaone4_5, _patches(1176)),
    "gemma4": Alone(lambda: _gemma4(use_bidirectional_attention="vision"), _gemma4_picture),
    "gemma4_causal": Alone(_gemma4, _gemma4_picture),
    "glm46v": Alone(
        _glm(transformers.Glm46VConfig, transformers.Glm46VForConditionalGeneration, model_type="glm4v_text"),
        _patches(1176),
    ),
    "glm4v_moe": Alone(
        _glm(transformers.Glm4vMoeConfig, transformers.Glm4vMoeForConditionalGeneration, **_EXPERTS), _patches(1176)
    ),
    "glm_ocr": Alone(_glm(transformers.GlmOcrConfig, transformers.GlmOcrForConditionalGeneration), _patches(1176)),
    "got_ocr2": Alone(_got_ocr2, _square(4)),
    "idefics2": Alone(_idefics2, lambda rng: ({"pixel_values": _tile(rng, 1, 1, 3, 56, 56)}, 4)),
    "lighton_ocr": Alone(_lighton_ocr, _square(4, image_sizes=np.array([[56, 56]]))),
    "paddleocr_vl": Alone(_paddleocr_vl, lambda rng: _patch_squares(rng)),
    "paligemma2": Alone(_paligemma2, _square(16)),
    "qwen3_vl_moe": Alone(_qwen3_vl_moe, _patches(1536)),
    "vipllava": Alone(_vipllava, _square(16)),
}


def _patch_squares(rng: np.random.Generator) -> tuple[Arrays, int]:
    """Patches as pictures of 14 × 14 pixels each."""
    rows, columns = (rng.integers(1, 4, 2) * 2).tolist()
    arrays = {"pixel_values": _tile(rng, rows * columns, 3, 14, 14), "image_grid_thw": np.array([[1, rows, columns]])}
    return arrays, rows * columns // 4


def make(name: str, seed: int = 0) -> PreTrainedModel:
    """In evaluation mode, with weights for varied answers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[name].make()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    is_embedding = parameter.ndim == 2 and "embed" in key
                    torch.nn.init.normal_(parameter, std=1.2 / (4 if is_embedding else parameter[0].numel()) ** 0.5)
                elif key.endswith("bias"):
                    torch.nn.init.normal_(parameter, std=0.1)
    model.tie_weights()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = SIZES["pad_token_id"]
    return model.eval()


def rows(name: str, count: int) -> list[Sample]:
    """Rows of text and one picture, the third and the sixth of two."""
    rng = np.random.default_rng(0)
    samples = []
    for key in range(count):
        ids, pictures = rng.integers(0, 256, 3).tolist(), []
        for number in range(1, 3 if key % 3 == 2 else 2):
            arrays, num_tokens = MODELS[name].picture(rng)
            pictures.append(Picture(bytes([key, number] * 8), arrays))
            ids += [*[-number] * num_tokens, *rng.integers(0, 256, 4 + key).tolist()]
        samples.append(Sample(key, ids, pictures, GenerationParams(max_new_tokens=4 + 3 * key)))
    return samples
