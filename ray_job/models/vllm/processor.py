"""A model's processor for jobs that vLLM answers: it has its own way with pictures, so they travel undone."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from PIL import Image

from ray_job.models.processor import Placeholder, PreparedPicture, Processor
from ray_job.prompts.parts import Message

IMAGE = "image"  # the name of an undone picture's only array


class UndonePictures:
    """See `Processor`. Prompts and answers are another processor's; a picture is one token of a prompt.

    Args:
        processor: the model's.
        undone: what stands for a picture until vLLM prepares it, one token.
    """

    def __init__(self, processor: Processor, undone: Placeholder) -> None:
        self._processor = processor
        self._undone = undone

    @property
    def special_tokens(self) -> Collection[str]:
        return self._processor.special_tokens

    @property
    def pad_id(self) -> int:
        return self._processor.pad_id

    @property
    def stop_ids(self) -> Collection[int]:
        return self._processor.stop_ids

    @property
    def max_len(self) -> int:
        return self._processor.max_len

    @property
    def max_image_tokens(self) -> int:
        return self._processor.max_image_tokens

    @property
    def takes_system(self) -> bool:
        return self._processor.takes_system

    @property
    def counts_by_size(self) -> bool:
        return self._processor.counts_by_size

    def prepare(self, image: Image.Image) -> PreparedPicture:
        """The picture as it is, uint8 (H, W, 3), as array `IMAGE`."""
        return PreparedPicture({IMAGE: np.asarray(image.convert("RGB"))}, self._undone)

    def placeholder(self, width: int, height: int) -> Placeholder:
        """What a plan counts: the other processor's, of a blank picture where the size alone does not tell it."""
        found = self._processor.placeholder(width, height)
        return self._processor.prepare(Image.new("RGB", (width, height))).placeholder if found is None else found

    def page_size(self, width: float, height: float) -> tuple[int, int]:
        return self._processor.page_size(width, height)

    def encode_chat(self, messages: Sequence[Message], placeholders: Sequence[Placeholder]) -> list[int]:
        return self._processor.encode_chat(messages, placeholders)

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode(ids)

    def tokenizer_json(self) -> str:
        return self._processor.tokenizer_json()
