"""A sample as vLLM's prompt: token ids in which each picture stands once, and the pictures in that order."""

from __future__ import annotations

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
        ids: list[int] = []
        order: list[int] = []
        for token, before in zip(sample.input_ids, (0, *sample.input_ids), strict=False):
            if token >= 0:
                ids.append(token)
            elif token != before:
                order.append(-token)
                ids.append(-len(order) if self.placeholder is None else self.placeholder)
        pictures = [sample.pictures[number - 1] for number in order]
        prompt: dict[str, Any] = {"prompt_token_ids": ids}
        if pictures:
            prompt["multi_modal_data"] = {"image": [Image.fromarray(each.arrays[self.array]) for each in pictures]}
            prompt["multi_modal_uuids"] = {"image": [each.digest.hex() for each in pictures]}
        return prompt
