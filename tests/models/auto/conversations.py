"""Pictures and conversations, and what the library's own processor makes of them, called on the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ray_job.models.auto.library import load_processor
from ray_job.models.auto.processor import LibraryProcessor
from ray_job.prompts.parts import ImageTag, Message, Text

SIZES = ((100, 60), (60, 150), (90, 90), (31, 47), (200, 70))


def picture(number: int) -> Image.Image:
    """A smooth random picture of one of SIZES."""
    small = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(SIZES[number % len(SIZES)], Image.Resampling.BICUBIC)


def user(*parts: str | int) -> Message:
    """A user's message: texts, and pictures by their numbers from 1."""
    return Message("user", tuple(Text(part) if isinstance(part, str) else ImageTag(part) for part in parts))


def told(role: Any, text: str) -> Message:
    """A message of the system or the assistant."""
    return Message(role, (Text(text),))


@cache
def ours(folder: Path) -> LibraryProcessor:
    """The processor under test."""
    return LibraryProcessor.from_pretrained(folder)


@cache
def library(folder: Path) -> Any:
    """The library's own."""
    return load_processor(folder, {})


def whole_call(folder: Path, messages: Sequence[Message], images: Sequence[Image.Image]) -> Mapping[str, Any]:
    """What the library makes of a conversation at once, its pictures in the order in which they are shown."""
    processor = library(folder)
    if processor.chat_template is None:  # PaliGemma
        (message,) = messages
        texts = ["<image>" if isinstance(part, ImageTag) else part.text for part in message.parts]
        prompt = "".join(texts)
        arguments: dict[str, Any] = {}
    else:
        prompt = processor.apply_chat_template([_plain(each) for each in messages], add_generation_prompt=True)
        # As `apply_chat_template` itself goes on when it tokenizes.
        arguments = {"add_special_tokens": False} if prompt.startswith(processor.tokenizer.bos_token) else {}
    found: Mapping[str, Any] = processor(images=list(images) or None, text=[prompt], return_tensors="np", **arguments)
    return found


def encoded(folder: Path, messages: Sequence[Message], images: Sequence[Image.Image]) -> list[int]:
    """Our ids, pictures prepared one by one."""
    placeholders = [ours(folder).prepare(image).placeholder for image in images]
    return ours(folder).encode_chat(messages, placeholders)


def as_library(folder: Path, ids: Sequence[int]) -> list[int]:
    """The ids with the model's own id in the places of pictures."""
    processor = library(folder)
    config = ours(folder)._config
    feature_id = getattr(config, "image_token_id", None) or config.image_token_index
    assert processor.tokenizer.convert_ids_to_tokens(feature_id) is not None
    return [feature_id if token < 0 else token for token in ids]


def _plain(message: Message) -> dict[str, Any]:
    content: list[dict[str, str]] = []
    for part in message.parts:
        if isinstance(part, ImageTag):
            content.append({"type": "image"})
        elif isinstance(part, Text):
            content.append({"type": "text", "text": part.text})
    return {"role": message.role, "content": content}
