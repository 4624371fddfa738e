"""Pictures and prompts as LLaVA-NeXT reads them, by the library's own processor.

Shapes: N crops; C crop side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from transformers.image_processing_utils import select_best_resolution

from ray_job.demo.pictures import Scene
from ray_job.demo.training.architecture import Seen
from ray_job.demo.training.llava_next.folder import END
from ray_job.demo.training.targets import patch_targets
from ray_job.demo.training.tokenizer import generated_ids
from ray_job.models.phi3_vision.image_processing import HDSize


class LlavaNextPreparation:
    """A `Preparation`. A `Size` is the height and the width of a picture, from which its grid of crops follows."""

    num_shared_after_picture = 0

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.crop_size: int = processor.image_processor.crop_size["height"]
        self.patches_per_side: int = self.crop_size // processor.patch_size

    def look(self, scene: Scene, picture: Image.Image) -> Seen:
        """The stretched overview and the crops of the padded picture."""
        pixels_N3CC = self.processor.image_processor(picture, return_tensors="pt")["pixel_values"][0]
        targets = patch_targets(scene, self._hd_size(scene), self.patches_per_side, is_overview_padded=False)
        return Seen(pixels_N3CC, (scene.height, scene.width), torch.from_numpy(targets))

    def num_tokens(self, scene: Scene) -> int:
        """From the picture's size alone."""
        [tokens] = self.processor._get_num_multimodal_tokens([(scene.height, scene.width)])["num_image_tokens"]
        return int(tokens)

    def prompt(self, question: str, image_tokens: Sequence[int]) -> list[int]:
        """By the chat template, each picture's token replaced by as many as it has."""
        numbers = iter(range(1, len(image_tokens) + 1))
        ids: list[int] = []
        for token_id in _template_ids(self.processor, question, len(image_tokens)):
            if token_id == self.processor.image_token_id:
                number = next(numbers)
                ids += [-number] * image_tokens[number - 1]
            else:
                ids.append(token_id)
        return ids

    def answer_ids(self, answer: str) -> list[int]:
        """The answer and `<|end|>`."""
        tokenizer = self.processor.tokenizer
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        return [*generated_ids(answer, ids), tokenizer.convert_tokens_to_ids(END)]

    def _hd_size(self, scene: Scene) -> HDSize:
        """The sizes that the image processor resizes and pads to."""
        grids = self.processor.image_processor.image_grid_pinpoints
        height, width = select_best_resolution((scene.height, scene.width), grids)
        scale = min(width / scene.width, height / scene.height)
        resized = min(math.ceil(scene.width * scale), width), min(math.ceil(scene.height * scale), height)
        return HDSize(*resized, width, height, is_transposed=False, crop_size=self.crop_size)


def messages(question: str, pictures: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """A single-turn chat as the library takes it: the pictures, then the question."""
    content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


@lru_cache(maxsize=4096)
def _template_ids(processor: Any, question: str, num_pictures: int) -> tuple[int, ...]:
    pictures = [Image.new("RGB", (1, 1))] * num_pictures
    text = processor.apply_chat_template(messages(question, pictures), add_generation_prompt=True)
    return tuple(processor.tokenizer(text)["input_ids"])
