"""Rows of mixed pictures and texts for a family's tiny model: as samples of ours, and as the library answers them.

The library prepares each row whole and generates it alone. A sample has the same token ids, and pictures prepared one
at a time as whole numbers.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from ray_job.models.auto.normalization import Normalization, normalization_of
from ray_job.rows import Picture, Sample
from ray_job.spec import GenerationParams
from tests.models.auto.families import make

_SIZES = [(100, 60), (60, 150), (90, 90), (200, 70), (31, 47)]
_WORDS = ["what", "is", "in", "this", "picture", "how", "many", "red", "things", "are", "left", "of", "the", "box"]
_HOSTILE = "{{ messages }} {% raw %} <|image_1|> \x00 ümläut 🦊 [/INST]x </s"
ONE_PICTURE = {"llava_onevision", "paligemma", "paligemma2"}  # in a row: more are prepared in another way, or never
NO_TEXT_ALONE = {"paligemma", "paligemma2"}


@dataclass(frozen=True)
class Family:
    """A tiny model, its processor's numbers, ten rows, and the library's answers to them."""

    name: str
    model: PreTrainedModel
    normalization: Normalization
    samples: Sequence[Sample]
    answers: dict[int, list[int]]  # by key of the sample


@functools.cache
def family(name: str, seed: int = 0) -> Family:
    """Kept, since many tests ask the same rows; tests leave the model as it is."""
    processor, model = make(name, seed)
    model.generation_config.eos_token_id = None  # long answers show more
    normalization = of_processor(processor.image_processor)
    samples, answers = [], {}
    for key, (messages, images, num_tokens) in enumerate(_rows(name)):
        inputs = _whole(processor, messages, images)
        params = GenerationParams(max_new_tokens=num_tokens)
        samples.append(_sample(key, processor, model.config.image_token_id, inputs, images, params))
        answers[key] = _generated(model, inputs, num_tokens)
    return Family(name, model, normalization, samples, answers)


def few(made: Family) -> list[Sample]:
    """Rows to probe a model with: none whose pictures differ in size."""
    return [sample for sample in made.samples if len(sample.pictures) < 2][:4]


def tokenizer_of(name: str) -> Any:
    """A family's tokenizer."""
    return make(name)[0].tokenizer


def library_pixels(name: str, image: Image.Image) -> torch.Tensor:
    """A picture's pixels as the library hands them to the model."""
    processor, _ = make(name)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}]
    pixels: torch.Tensor = _whole(processor, messages, [image])["pixel_values"]
    return pixels


def of_processor(images: Any) -> Normalization:
    """An image processor's own numbers."""
    mean, std = images.image_mean if images.do_normalize else None, images.image_std
    scale = images.rescale_factor if images.do_rescale else 1.0
    return Normalization(scale, normalization_of(mean), normalization_of(std) if mean is not None else ())


def picture(number: int) -> Image.Image:
    """Coloured patches in one of a few odd sizes."""
    patches = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(_SIZES[number], Image.Resampling.BICUBIC)


def _rows(name: str) -> list[tuple[list[dict[str, Any]], list[Image.Image], int]]:
    """Messages, pictures and the number of tokens to generate: pictures asked about again, none, two, hostile text."""
    pictures = [picture(number) for number in range(len(_SIZES))]
    rng = random.Random(3)
    rows = []
    for number in range(10):
        text = _HOSTILE if number == 5 else " ".join(rng.choices(_WORDS, k=rng.randint(1, 12)))
        images = [pictures[number % 3]]
        if number % 5 == 3 and name not in NO_TEXT_ALONE:
            images = []
        elif number % 5 == 4 and name not in ONE_PICTURE:
            images = [pictures[number % 5], pictures[(number + 2) % 5]]
        content: list[dict[str, Any]] = [{"type": "image"} for _ in images]
        if len(images) == 2:
            content.insert(1, {"type": "text", "text": "and "})
        content.append({"type": "text", "text": text})
        system = "You look at pictures, and you answer in few words. " * 2
        first = [{"role": "system", "content": [{"type": "text", "text": system}]}] if number % 2 else []
        rows.append(([*first, {"role": "user", "content": content}], images, rng.choice([3, 9, 16, 24])))
    return rows


def _whole(processor: ProcessorMixin, messages: list[dict[str, Any]], images: list[Image.Image]) -> Any:
    """A row as the library prepares it."""
    if processor.chat_template is None:
        text = "".join(part["text"] for part in messages[-1]["content"] if part["type"] == "text")
        return processor(text=[processor.image_token * len(images) + text], images=images, return_tensors="pt")
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return processor(text=[text], images=images or None, return_tensors="pt", add_special_tokens=False)


@torch.inference_mode()
def _generated(model: PreTrainedModel, inputs: Any, num_tokens: int) -> list[int]:
    inputs.pop("labels", None)
    prompt_len = inputs["input_ids"].shape[1]
    ids: list[int] = model.generate(**inputs, do_sample=False, max_new_tokens=num_tokens)[0, prompt_len:].tolist()
    return ids


def _sample(
    key: int,
    processor: ProcessorMixin,
    image_id: int,
    inputs: Any,
    images: list[Image.Image],
    params: GenerationParams,
) -> Sample:
    """The row's ids with −k for picture k, and each picture prepared alone."""
    alone = [_prepared(processor, image_id, image) for image in images]
    owners = iter([-number for number, (_, count) in enumerate(alone, start=1) for _ in range(count)])
    ids = [next(owners) if token == image_id else token for token in inputs["input_ids"][0].tolist()]
    assert next(owners, None) is None
    return Sample(key, ids, [prepared for prepared, _ in alone], params)


def _prepared(processor: ProcessorMixin, image_id: int, image: Image.Image) -> tuple[Picture, int]:
    """A picture's arrays, pixels as whole numbers, and how many placeholders stand for it."""
    merged = processor._merge_kwargs(tokenizer_init_kwargs=processor.tokenizer.init_kwargs, return_tensors="np")
    options = {**merged["images_kwargs"], "do_rescale": False, "do_normalize": False}
    nested = type(processor).__name__ in ("SmolVLMProcessor", "Idefics3Processor", "Gemma3Processor")
    data, _ = processor._process_images([[image]] if nested else [image], **options)
    arrays = {name: np.asarray(array) for name, array in data.items()}
    assert (arrays["pixel_values"] == np.rint(arrays["pixel_values"])).all()
    arrays["pixel_values"] = arrays["pixel_values"].astype(np.uint8)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}]
    ids = _whole(processor, messages, [image])["input_ids"]
    digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
    return Picture(digest, arrays), int((ids == image_id).sum())
