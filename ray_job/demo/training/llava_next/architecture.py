"""LLaVA-NeXT as an `Architecture`: its folder, its start, its answers.

The tower is the demo's as it is. The decoder is Phi-3's of the same sizes with plain rotary frequencies near
the demo's; the projector maps single patches, and starts as that of four equal ones. What has to be learned anew is
where a token stands in its picture.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

from ray_job.demo.training.architecture import Answer, Network, Preparation
from ray_job.demo.training.llava_next.answers import answerer
from ray_job.demo.training.llava_next.folder import read_processor, write_folder
from ray_job.demo.training.llava_next.network import LlavaNextNetwork
from ray_job.demo.training.llava_next.preparation import LlavaNextPreparation
from ray_job.demo.training.llava_next.start import fill_from_demo
from ray_job.demo.training.recipe import Recipe


class LlavaNext:
    """An `Architecture`."""

    name = "llava_next"
    recipe = Recipe(steps=600, vision_steps=0, num_examples=12)
    start = "the weights of `builtin:demo`"
    card = """\
# The demo's LLaVA-NeXT model

The LLaVA-NeXT architecture in small (`LlavaNextForConditionalGeneration` of transformers with a CLIP tower and a Phi-3
decoder, {num_parameters} parameters, bfloat16), trained on drawn pictures from the weights of the demo's own model.
It answers the same short questions about coloured shapes, printed numbers and two pictures. As
`builtin:demo-llava-next` it gives the path for models of the library a real one without a download. It contains
nothing of others' weights or tokenizers.
"""

    def write_folder(self, folder: Path) -> None:
        """As the library writes it."""
        write_folder(folder)

    def preparation(self, folder: Path) -> Preparation:
        """Pickles with the library's processor."""
        return LlavaNextPreparation(read_processor(folder))

    def network(self, folder: Path, seed: int) -> Network:
        """The demo's weights; the seed makes those that the demo's model has none for, which nothing reads."""
        torch.manual_seed(seed)
        model = LlavaNextForConditionalGeneration(LlavaNextConfig.from_pretrained(folder))
        fill_from_demo(model)
        return LlavaNextNetwork(model)

    def save(self, module: nn.Module, folder: Path) -> None:
        """By the library's `save_pretrained`."""
        assert isinstance(module, LlavaNextForConditionalGeneration)
        model = copy.deepcopy(module).bfloat16()
        model.generation_config = GenerationConfig.from_pretrained(folder)
        model.save_pretrained(folder)

    def answer(self, folder: Path, module: nn.Module | None = None) -> Answer:
        """By the library's own `generate`."""
        if module is None:
            module = LlavaNextForConditionalGeneration.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True
            )
        return answerer(module.eval(), read_processor(folder), GenerationConfig.from_pretrained(folder))
