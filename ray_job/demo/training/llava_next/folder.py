"""The folder of a LLaVA-NeXT in small, but for its weights, as the library writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlavaNextConfig,
    LlavaNextProcessor,
    Phi3Config,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from ray_job.demo.training.tokenizer import build_tokenizer
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig

END = "<|end|>"
_IMAGE, _PAD = "<image>", "<|endoftext|>"
_MAX_LEN = 4096
_ROPE_THETA = 20000.0  # whose frequencies are within 7 % of those that the demo's short factors make
_GRIDS = [[64, 64], [64, 128], [128, 64]]  # (height, width) in pixels, of the crops beside the overview
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def demo_folder() -> Path:
    """Of the model whose weights and sizes are taken over."""
    return Path(__file__).parents[2] / "model"


def write_folder(folder: Path) -> None:
    """config.json, generation_config.json, and the processor's files."""
    processor = _new_processor()
    processor.save_pretrained(folder)
    # Beside processor_config.json, where the library reads it from today: what older releases and tools read.
    processor.image_processor.save_pretrained(folder)
    _new_config(processor).save_pretrained(folder)
    _generation_config(processor).save_pretrained(folder)


def read_processor(folder: Path) -> Any:
    """The library's processor of a folder, for pictures without torchvision too."""
    return AutoProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]


def _new_processor() -> Any:
    """The demo's tokenizer with a token for pictures, and 64-pixel crops of 8×8 patches."""
    tokens = Tokenizer.from_str(json.dumps(build_tokenizer()))
    tokens.add_special_tokens([AddedToken(_IMAGE, normalized=False, special=True)])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokens,
        bos_token="<s>",
        eos_token=END,
        pad_token=_PAD,
        unk_token="<unk>",
        extra_special_tokens={"image_token": _IMAGE},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=_MAX_LEN,
    )
    image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_grid_pinpoints=_GRIDS
    )
    return LlavaNextProcessor(  # type: ignore[no-untyped-call]
        image_processor,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_CHAT_TEMPLATE,
    )


def _new_config(processor: Any) -> LlavaNextConfig:
    """Tower and decoder of the demo's sizes."""
    demo = Phi3VisionConfig.from_pretrained(demo_folder())
    tokenizer = processor.tokenizer
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    vision = CLIPVisionConfig(
        image_size=demo.vision.image_size,
        patch_size=demo.vision.patch_size,
        hidden_size=demo.vision.hidden_size,
        intermediate_size=demo.vision.intermediate_size,
        num_hidden_layers=demo.vision.num_hidden_layers,
        num_attention_heads=demo.vision.num_attention_heads,
        layer_norm_eps=demo.vision.layer_norm_eps,
        hidden_act=demo.vision.hidden_act,
        projection_dim=demo.vision.hidden_size,
    )
    text = Phi3Config(
        vocab_size=len(tokenizer),
        hidden_size=demo.hidden_size,
        intermediate_size=demo.intermediate_size,
        num_hidden_layers=demo.num_hidden_layers,
        num_attention_heads=demo.num_attention_heads,
        num_key_value_heads=demo.num_key_value_heads,
        rms_norm_eps=demo.rms_norm_eps,
        max_position_embeddings=_MAX_LEN,
        original_max_position_embeddings=_MAX_LEN,
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE_THETA},
        sliding_window=None,
        **ids,
    )
    return LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=processor.image_token_id,
        image_grid_pinpoints=_GRIDS,
        image_seq_length=(demo.vision.image_size // demo.vision.patch_size) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def _generation_config(processor: Any) -> GenerationConfig:
    tokenizer = processor.tokenizer
    return GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
