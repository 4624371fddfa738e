"""Tiny random models and processors of many families, made from configurations: nothing is downloaded.

`make(name)` gives the library's own processor and model; `write(name, folder)` a checkpoint of both, as the library
writes it. The library's processors of models that know videos too want a processor of videos, which needs
torchvision; a stand-in without a method takes its place.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.pixtral import image_processing_pil_pixtral
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.utils import PushToHubMixin, is_torchvision_available

from tests.models.auto import chat_tokenizers as chat
from tests.models.auto.chat_tokenizers import BOS_ID, EOS_ID, PAD_ID, VOCAB, tokenizer

Pair: TypeAlias = tuple[ProcessorMixin, PreTrainedModel]

_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "pad_token_id": PAD_ID,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
_PINPOINTS = [[56, 112], [112, 56], [112, 112], [56, 168]]
_CLIP = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_IM = ["<|im_start|>", "<|im_end|>"]
_QWEN = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>", *_IM]
_TILES = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
_SMOL = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>", _IM[0], *_TILES]
_GLM = ["<|begin_of_image|>", "<|image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|video|>", "<|end_of_video|>"]


class _NoVideos(PushToHubMixin):
    """In the place of a processor of videos; never called."""

    merge_size, num_frames, fps, temporal_patch_size, patch_size = 2, 8, 1, 2, 14
    model_input_names: tuple[str, ...] = ()
    _auto_class = None

    def to_dict(self) -> dict[str, Any]:
        return {"do_sample_frames": True, "size": {"shortest_edge": 56, "longest_edge": 56 * 56}}


def _pictures_only(cls: type[Any]) -> type[Any]:
    """A processor's class that takes `_NoVideos`."""

    def check(self: Any, name: str, argument: Any) -> Any:
        return type(argument) if "video" in name else cls.check_argument_for_proper_class(self, name, argument)

    attributes = classmethod(lambda _: cls.get_attributes())
    return type(cls.__name__, (cls,), {"check_argument_for_proper_class": check, "get_attributes": attributes})


def _of_head(*sixteenths: int) -> list[int]:
    """Parts of a decoder's head, given for one of 16."""
    return [part * _TEXT["head_dim"] // 16 for part in sixteenths]


def _siglip(**changed: Any) -> transformers.SiglipVisionConfig:
    return transformers.SiglipVisionConfig(**VISION, vision_use_head=False, **changed)


def _clip() -> transformers.CLIPVisionConfig:
    return transformers.CLIPVisionConfig(**{**VISION, "num_hidden_layers": 3}, projection_dim=32)


def _llava() -> Pair:
    tok = tokenizer("llama", ["<image>"], image_token="<image>")
    own = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    template = chat.pictures_first("<image>")
    processor = transformers.LlavaProcessor(LlavaImageProcessorPil(**_CLIP), tok, **own, chat_template=template)
    config = transformers.LlavaConfig(
        vision_config=_clip(),
        text_config=transformers.LlamaConfig(**_TEXT),
        image_token_index=tok.image_token_id,
        vision_feature_layer=-2,
    )
    return processor, transformers.LlavaForConditionalGeneration(config)


def _llava_next(text: type[Any], kind: str, **changed: Any) -> Pair:
    tok = tokenizer(kind, ["<image>", *_IM], image_token="<image>")
    images = LlavaNextImageProcessorPil(**_CLIP, image_grid_pinpoints=_PINPOINTS)
    own = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    template = chat.chatml("<image>\n") if kind == "bytes" else chat.pictures_first("<image>")
    processor = transformers.LlavaNextProcessor(images, tok, **own, chat_template=template)
    config = transformers.LlavaNextConfig(
        vision_config=_clip(),
        text_config=text(**_TEXT, **changed),
        image_token_index=tok.image_token_id,
        image_grid_pinpoints=_PINPOINTS,
        vision_feature_layer=-2,
    )
    return processor, transformers.LlavaNextForConditionalGeneration(config)


def _llava_onevision() -> Pair:
    tok = tokenizer("bytes", ["<image>", "<video>", *_IM], image_token="<image>", video_token="<video>")
    images = LlavaOnevisionImageProcessorPil(size={"height": 56, "width": 56}, image_grid_pinpoints=_PINPOINTS)
    own = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    cls = _pictures_only(transformers.LlavaOnevisionProcessor)
    processor = cls(images, tok, _NoVideos(), **own, chat_template=chat.chatml("<image>"))
    config = transformers.LlavaOnevisionConfig(
        vision_config=_siglip(),
        text_config=transformers.Qwen2Config(**_TEXT),
        image_token_index=tok.image_token_id,
        video_token_index=tok.video_token_id,
        image_grid_pinpoints=_PINPOINTS,
    )
    return processor, transformers.LlavaOnevisionForConditionalGeneration(config)


def _qwen(processor: type[Any], config: type[Any], model: type[Any], patch: int, vision: Any, **text: Any) -> Pair:
    tok = tokenizer("bytes", _QWEN)
    side = 2 * patch
    pixels = {"shortest_edge": side * side, "longest_edge": side * side * 16}
    images = Qwen2VLImageProcessorPil(size=pixels, patch_size=patch)
    template = chat.chatml("<|vision_start|><|image_pad|><|vision_end|>")
    made = _pictures_only(processor)(images, tok, _NoVideos(), chat_template=template)
    ids = {f"{name}_token_id": tok.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    ids |= {f"{name}_token_id": tok.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
    rope = {**_ROPE, "mrope_section": _of_head(2, 3, 3), "mrope_interleaved": patch == 16}  # Qwen3-VL's is
    text = {**_TEXT, "rope_parameters": rope, **text}
    vision = {"num_heads": 2, "patch_size": patch, **vision}
    return made, model(config(text_config=text, vision_config=vision, **ids))


def _qwen2_vl() -> Pair:
    return _qwen(
        transformers.Qwen2VLProcessor,
        transformers.Qwen2VLConfig,
        transformers.Qwen2VLForConditionalGeneration,
        patch=14,
        vision={"depth": 2, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
    )


def _qwen2_5_vl() -> Pair:
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
    return _qwen(
        transformers.Qwen2_5_VLProcessor,
        transformers.Qwen2_5_VLConfig,
        transformers.Qwen2_5_VLForConditionalGeneration,
        patch=14,
        vision={**vision, "window_size": 56, "fullatt_block_indexes": [1]},
    )


def _qwen3_vl() -> Pair:
    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
    return _qwen(
        transformers.Qwen3VLProcessor,
        transformers.Qwen3VLConfig,
        transformers.Qwen3VLForConditionalGeneration,
        patch=16,
        num_hidden_layers=4,
        vision={**vision, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
    )


def _smolvlm() -> Pair:
    processing_smolvlm.num2words = processing_smolvlm.num2words or str  # a package that only videos need
    names = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
        "video_token": "<video>",
    }
    images = SmolVLMImageProcessorPil(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    cls = _pictures_only(transformers.SmolVLMProcessor)
    tok = tokenizer("bytes", _SMOL, **names)
    processor = cls(images, tok, _NoVideos(), image_seq_len=4, chat_template=chat.utterances("<image>"))
    config = transformers.SmolVLMConfig(**_idefics3_config(tok))
    return processor, transformers.SmolVLMForConditionalGeneration(config)


def _idefics3() -> Pair:
    tok = tokenizer("bytes", _SMOL, image_token="<image>")
    images = Idefics3ImageProcessorPil(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    template = chat.utterances("<image>")
    processor = transformers.Idefics3Processor(images, tok, image_seq_len=4, chat_template=template)
    config = transformers.Idefics3Config(**_idefics3_config(tok))
    return processor, transformers.Idefics3ForConditionalGeneration(config)


def _idefics3_config(tok: PreTrainedTokenizerFast) -> dict[str, Any]:
    text = transformers.LlamaConfig(**_TEXT).to_dict()
    return {
        "vision_config": VISION,
        "text_config": text,
        "image_token_id": tok.convert_tokens_to_ids("<image>"),
        "scale_factor": 2,
        "pad_token_id": PAD_ID,
    }


def _internvl(text: Any) -> Pair:
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>"}
    names["context_image_token"] = "<IMG_CONTEXT>"
    tok = tokenizer("bytes", [*names.values(), *_IM], **names)
    size = {"height": 56, "width": 56}
    images = GotOcr2ImageProcessorPil(size=size, crop_to_patches=True, min_patches=1, max_patches=4)
    cls = _pictures_only(transformers.InternVLProcessor)
    template = chat.chatml("<IMG_CONTEXT>\n")
    processor = cls(images, tok, _NoVideos(), image_seq_length=4, chat_template=template)
    config = transformers.InternVLConfig(
        vision_config={**VISION, "image_size": [56, 56], "patch_size": [14, 14]},
        text_config=text.to_dict(),
        image_token_id=tok.context_image_token_id,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return processor, transformers.InternVLForConditionalGeneration(config)


def _gemma3() -> Pair:
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tok = tokenizer("gemma", [*names.values(), "<start_of_turn>", "<end_of_turn>"], **names)
    images = Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    template = chat.turns("<start_of_image>")
    processor = transformers.Gemma3Processor(images, tok, image_seq_length=16, chat_template=template)
    text = {**_TEXT, "num_hidden_layers": 4, "sliding_window": 18, "query_pre_attn_scalar": 24}
    config = transformers.Gemma3Config(
        vision_config=_siglip().to_dict(),
        mm_tokens_per_image=16,
        text_config={
            **text,
            "final_logit_softcapping": 30.0,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        boi_token_index=tok.boi_token_id,
        eoi_token_index=tok.eoi_token_id,
        image_token_index=tok.image_token_id,
        tie_word_embeddings=False,
    )
    return processor, transformers.Gemma3ForConditionalGeneration(config)


def _paligemma() -> Pair:
    tok = tokenizer("gemma", ["<image>"], image_token="<image>")
    images = SiglipImageProcessorPil(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    processor = transformers.PaliGemmaProcessor(images, tok)  # published without a chat template
    vocab = 1536  # beside the tokenizer's, the tokens of places and shapes that the processor adds
    config = transformers.PaliGemmaConfig(
        vision_config=_siglip(projection_dim=64).to_dict(),
        text_config=transformers.GemmaConfig(**{**_TEXT, "vocab_size": vocab}).to_dict(),
        image_token_index=tok.image_token_id,
        projection_dim=64,
        hidden_size=64,
        vocab_size=vocab,
        tie_word_embeddings=False,
    )
    return processor, transformers.PaliGemmaForConditionalGeneration(config)


def _mistral3() -> Pair:
    tok = tokenizer("bytes", ["[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]", *_SYSTEM_PROMPT])
    images = image_processing_pil_pixtral.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=14)
    if not is_torchvision_available():  # its processor's module imports the image processor that needs it
        sys.modules.setdefault("transformers.models.pixtral.image_processing_pixtral", image_processing_pil_pixtral)
    from transformers.models.pixtral.processing_pixtral import PixtralProcessor

    own = {"patch_size": 14, "spatial_merge_size": 2}
    processor = PixtralProcessor(images, tok, **own, chat_template=chat.instructions("[IMG]"))
    config = transformers.Mistral3Config(
        vision_config={**VISION, "model_type": "pixtral", "image_size": 112, "head_dim": 16},
        text_config=transformers.MistralConfig(**_TEXT, sliding_window=None).to_dict(),
        image_token_index=tok.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    return processor, transformers.Mistral3ForConditionalGeneration(config)


_SYSTEM_PROMPT = ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]


def _glm4v() -> Pair:
    tok = tokenizer("bytes", [*_GLM, "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"])
    side = 28 * 28
    images = Glm4vImageProcessorPil(size={"shortest_edge": side * 4, "longest_edge": side * 32})
    template = chat.roles("<|begin_of_image|><|image|><|end_of_image|>")
    processor = _pictures_only(transformers.Glm4vProcessor)(images, tok, _NoVideos(), chat_template=template)
    rope = {**_ROPE, "mrope_section": _of_head(1, 1, 2), "partial_rotary_factor": 0.5}
    ids = tok.convert_tokens_to_ids
    config = transformers.Glm4vConfig(
        text_config={**_TEXT, "rope_parameters": rope, "tie_word_embeddings": False},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "out_hidden_size": 64,
            "intermediate_size": 48,
        },
        image_token_id=ids("<|image|>"),
        video_token_id=ids("<|video|>"),
        image_start_token_id=ids("<|begin_of_image|>"),
        image_end_token_id=ids("<|end_of_image|>"),
        video_start_token_id=ids("<|begin_of_video|>"),
        video_end_token_id=ids("<|end_of_video|>"),
    )
    return processor, transformers.Glm4vForConditionalGeneration(config)


FAMILIES: dict[str, Callable[[], Pair]] = {
    "llava": _llava,
    "llava_next": functools.partial(_llava_next, transformers.MistralConfig, "llama", sliding_window=None),
    "llava_next_llama": functools.partial(_llava_next, transformers.LlamaConfig, "llama"),
    "llava_next_qwen2": functools.partial(_llava_next, transformers.Qwen2Config, "bytes"),
    "llava_next_mistral_window": functools.partial(_llava_next, transformers.MistralConfig, "llama", sliding_window=20),
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
    "internvl": lambda: _internvl(transformers.Qwen2Config(**_TEXT)),
    "internvl_qwen3": lambda: _internvl(transformers.Qwen3Config(**_TEXT)),
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "mistral3": _mistral3,
    "glm4v": _glm4v,
}


def make(name: str, seed: int = 0) -> Pair:
    """A processor and a model in evaluation mode, with weights large enough for varied answers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        processor, model = FAMILIES[name]()
        _randomize(model)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD_ID, EOS_ID
    return processor, model.eval()


@torch.no_grad()
def _randomize(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            is_embedding = parameter.ndim == 2 and "embed" in name
            torch.nn.init.normal_(parameter, std=1.2 / (4 if is_embedding else parameter[0].numel()) ** 0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.tie_weights()


def write(name: str, folder: Path, seed: int = 0) -> Pair:
    """Writes a family's checkpoint: weights, tokenizer and configurations, as the library saves them."""
    processor, model = make(name, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return processor, model


def write_older(name: str, folder: Path, seed: int = 0) -> Pair:
    """The same as older releases wrote it: the picture's part in preprocessor_config.json, the rest in two others."""
    processor, model = write(name, folder, seed)
    path = folder / "processor_config.json"
    content = json.loads(path.read_text())
    content.pop("video_processor", None)
    images = {**content.pop("image_processor"), "processor_class": content["processor_class"]}
    images["image_processor_type"] = images["image_processor_type"].removesuffix("Pil")
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    path.write_text(json.dumps(content))
    if (template := folder / "chat_template.jinja").exists():
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
        template.unlink()
    return processor, model
