"""LLaVA-NeXT's answers by the library's own `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from ray_job.demo.questions import Example
from ray_job.demo.training.architecture import Answer
from ray_job.demo.training.llava_next.preparation import messages

_MAX_NEW_TOKENS = 14  # the longest answer, in JSON, takes as many, `<|end|>` included


def answerer(model: Any, processor: Any, generation_config: GenerationConfig) -> Answer:
    """Greedy answers of a model; `processor` pads on the left."""
    generation_config.max_new_tokens = _MAX_NEW_TOKENS

    @torch.inference_mode()
    def answer(examples: Sequence[Example]) -> list[list[str]]:
        inputs = processor.apply_chat_template(
            [messages(qa.question, example.pictures) for example in examples for qa in example.questions],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        ids_BL = model.generate(**inputs, generation_config=generation_config)
        generated = ids_BL[:, inputs["input_ids"].shape[1] :]
        found = iter(processor.batch_decode(generated, skip_special_tokens=True))
        return [[next(found) for _ in example.questions] for example in examples]

    return answer
