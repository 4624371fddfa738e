"""Phi-3-Vision for vLLM: the processor it looks for is code that no released transformers has.

A plugin of vLLM (`peers.vllm_environment` announces it), so that each of its processes calls `register`. Of ray_job it
needs only how crops are cut.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, BatchFeature, CLIPVisionConfig, PretrainedConfig
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.model_executor.models import phi3v
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalKwargsItems
from vllm.multimodal.parse import ImageProcessorItems, ImageSize, MultiModalDataItems
from vllm.multimodal.processing import ProcessorInputs, PromptReplacement
from vllm.multimodal.processing.processor import BaseMultiModalProcessor

from ray_job.bench.peers.peer import MODEL_VARIABLE, NUM_CROPS_VARIABLE
from ray_job.models.phi3_vision.crops import pixels_to_crops
from ray_job.models.phi3_vision.image_processing import num_image_tokens

_NUM_CROPS = int(os.environ[NUM_CROPS_VARIABLE])
_IMAGE_TOKEN = 32044  # phi3v.py replaces its embedding by the picture's, wherever it is told a picture stands
_SIDE = 336


class Phi3VConfig(PretrainedConfig):
    """What config.json says; no released transformers has this class."""

    model_type = "phi3_v"


class Crops:
    """The processor: HD pictures to crops, padded with zero crops as the official one does."""

    def __call__(self, images: Sequence[Any], return_tensors: str = "pt") -> BatchFeature:
        pixels = [torch.from_numpy(np.array(image)) for image in images]
        crops = [pixels_to_crops(each) for each in pixels]
        most = _NUM_CROPS + 1
        padded = [torch.cat([each, each.new_zeros((most - len(each), *each.shape[1:]))]) for each in crops]
        sizes = torch.tensor([each.shape[:2] for each in pixels])
        return BatchFeature({"pixel_values": torch.stack(padded), "image_sizes": sizes})


class ProcessingInfo(phi3v.Phi3VProcessingInfo):
    """Sizes of HD pictures."""

    def get_hf_processor(self, **kwargs: object) -> Any:
        return Crops()

    def get_num_image_tokens(self, *, image_width: int, image_height: int, processor: Any) -> int:
        return num_image_tokens(image_height // _SIDE, image_width // _SIDE)

    def get_image_size_with_most_features(self) -> ImageSize:
        return ImageSize(width=_SIDE, height=_SIDE * _NUM_CROPS)


class DummyInputs(phi3v.Phi3VDummyInputsBuilder):
    """Needs no tokenizer."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return ""


class Processor(phi3v.Phi3VMultiModalProcessor):
    """Takes prompts as ids in which -k stands once for picture k."""

    requires_tokenizer = False

    def get_dummy_inputs(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, MultiModalDummyOptions]
    ) -> ProcessorInputs:
        count = mm_counts.get("image", 0)
        data = self.dummy_inputs.get_dummy_mm_data(seq_len, mm_counts, mm_options)
        return ProcessorInputs(
            prompt=[-number for number in range(1, count + 1)],
            mm_data_items=self.info.parse_mm_data(data, validate=False),
        )

    def _get_hf_mm_text(self, mm_counts: Mapping[str, int]) -> None:
        return None

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, Any],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> list[PromptReplacement]:
        def placeholders(index: int) -> list[int]:
            size = mm_items.get_items("image", ImageProcessorItems).get_image_size(index)
            return [_IMAGE_TOKEN] * num_image_tokens(size.height // _SIDE, size.width // _SIDE)

        return [PromptReplacement("image", target=lambda index: [-index - 1], replacement=placeholders)]

    def _recompute_cached_prompt_update(self, cached_update: Any, new_item_idx: int) -> Any:
        return cached_update.with_target([-new_item_idx - 1])

    _apply_prompt_updates = BaseMultiModalProcessor._apply_prompt_updates


def register() -> None:
    """Tells this process of vLLM how the checkpoint is read."""
    AutoConfig.register("phi3_v", Phi3VConfig)
    config = json.loads((Path(os.environ[MODEL_VARIABLE]) / "config.json").read_text())
    tower = config["img_processor"].get("vision_config")
    if tower:  # phi3v.py builds the official one, whatever config.json says
        phi3v.CLIP_VIT_LARGE_PATCH14_336_CONFIG = CLIPVisionConfig(**tower)
    processor = MULTIMODAL_REGISTRY.register_processor(Processor, info=ProcessingInfo, dummy_inputs=DummyInputs)
    processor(phi3v.Phi3VForCausalLM)
