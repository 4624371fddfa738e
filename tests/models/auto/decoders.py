"""Tiny vision-language models over any text decoder of the library, by its LLaVA: `over(text_config)`."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

IMAGE_ID = 300
SIZES: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
}
_HEAD = {"head_dim": 16}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_WINDOWS = {"sliding_window": 6}

FIT: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": _WINDOWS,
    "ministral3": _HEAD,
    "qwen2": {},
    "qwen3": _HEAD,
    "phi3": {},
    "gemma": _HEAD,
    "gemma2": {**_HEAD, **_WINDOWS, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 24},
    "gemma3_text": {**_HEAD, **_WINDOWS, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "cohere": {},
    "cohere2": {**_WINDOWS, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "granite": {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "exaone4": {**_WINDOWS, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "smollm3": {},
    "olmo2": {},
    "glm": _HEAD,
    "glm4": _HEAD,
    "starcoder2": _WINDOWS,
    "phi": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {**_HEAD, **_EXPERTS},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32},
    "hunyuan_v1_dense": _HEAD,
    "seed_oss": _HEAD,
}
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
}


def config(name: str, **changed: Any) -> PreTrainedConfig:
    """A text decoder's configuration, of tiny sizes."""
    return transformers.AutoConfig.for_model(name, **{**SIZES, **FIT.get(name, {}), **changed})


def over(text: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model of pictures of 28 × 28 pixels in 4 tokens each, and of this decoder, with weights for varied answers."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        projection_dim=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.LlavaForConditionalGeneration(
            transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_ID)
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    width = 4 if "embed" in name else parameter.shape[-1]
                    torch.nn.init.normal_(parameter, std=1.2 / width**0.5)
    model.tie_weights()
    return model.eval()
