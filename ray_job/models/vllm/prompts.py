"""A sample as vLLM's prompt: token ids in which each picture stands once, and the pictures in that order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ray_job.rows import Sample


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """How a model's pictures are handed to vLLM.

    Args:
        array: name of a prepared picture's array, uint8 (H, W, 3).
        placeholder: the token that stands for a picture until the model's processor in vLLM replaces it. None: −k for
            the prompt's k-th one.
    """

    array: str
    placeholder: int | None = None

    def prompt(self, sample: Sample) -> dict[str, Any]:
        """`vllm.TokensPrompt` of a sample. Pictures are known by their digests, so that equal ones are encoded once.

        A run of −k becomes one placeholder; pictures are numbered anew, in the order of the prompt.
        """
        once = placeholders_once(sample.input_ids)
        pictures = [sample.pictures[-token - 1] for token in once if token < 0]
        numbers = itertools.count(1)
        ids = [token if token >= 0 else self._placeholder(next(numbers)) for token in once]
        prompt: dict[str, Any] = {"prompt_token_ids": ids}
        if pictures:
            prompt["multi_modal_data"] = {"image": [Image.fromarray(each.arrays[self.array]) for each in pictures]}
            prompt["multi_modal_uuids"] = {"image": [each.digest.hex() for each in pictures]}
        return prompt

    def _placeholder(self, number: int) -> int:
        return -number if self.placeholder is None else self.placeholder


def placeholders_once(ids: Sequence[int]) -> list[int]:
    """A prompt with each picture's run of placeholders as one."""
    return [token for place, token in enumerate(ids) if token >= 0 or place == 0 or ids[place - 1] != token]
