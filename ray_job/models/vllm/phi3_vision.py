"""Phi-3-Vision for vLLM, whose own class wants a processor that no released transformers has, and one size of tower.

vLLM's decoder, with this package's vision part before it: HD pixels go to the device as they are prepared, and become
features there as in every other engine. Where pictures stand, the prompt has an id outside the vocabulary, so that
penalties for repetition do not see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, BatchFeature, PretrainedConfig
from vllm import ModelRegistry
from vllm.config import VllmConfig
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models import phi3v
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageProcessorItems, ImageSize, MultiModalDataItems
from vllm.multimodal.processing import BaseDummyInputsBuilder, ProcessorInputs, PromptReplacement
from vllm.multimodal.processing.processor import BaseMultiModalProcessor, BaseProcessingInfo

from ray_job.models.phi3_vision.configuration import MODEL_TYPE, Phi3VisionConfig
from ray_job.models.phi3_vision.image_processing import num_image_tokens
from ray_job.models.phi3_vision.preprocessor_config import PreprocessorConfig
from ray_job.models.phi3_vision.vision import PictureEmbedding

ARCHITECTURE = "Phi3VForCausalLM"
NUM_CROPS = "ray_job_num_crops"  # a field that vLLM is told to add to the configuration


def placeholder(number: int) -> int:
    """What stands for the prompt's k-th picture until vLLM has processed it."""
    return -number


class Phi3VConfig(PretrainedConfig):
    """What config.json says; no released transformers has this class."""

    model_type = MODEL_TYPE


class ProcessingInfo(BaseProcessingInfo):
    """Sizes of HD pictures."""

    @property
    def config(self) -> Phi3VisionConfig:
        """The model's shape."""
        return Phi3VisionConfig.from_pretrained(self.model_id)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Pictures alone, as many as the job allows."""
        return {"image": None}

    def get_image_size_with_most_features(self) -> ImageSize:
        """One column of crops has the most separators."""
        side = self.config.vision.image_size
        return ImageSize(width=side, height=side * getattr(self.get_hf_config(), NUM_CROPS))


class DummyInputs(BaseDummyInputsBuilder[ProcessingInfo]):
    """The inputs that vLLM measures memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """None: there is no tokenizer."""
        return ""

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, MultiModalDummyOptions]
    ) -> dict[str, Any]:
        """Pictures of the largest size."""
        width, height = self.info.get_image_size_with_most_features()
        images = self._get_dummy_images(width=width, height=height, num_images=mm_counts.get("image", 0))
        return {"image": images}


class PictureProcessor(BaseMultiModalProcessor[ProcessingInfo]):
    """Takes prompts as ids in which −k stands once for picture k, and HD pictures."""

    requires_tokenizer = False

    def get_dummy_inputs(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, MultiModalDummyOptions]
    ) -> ProcessorInputs:
        """Pictures of the largest size, each with its placeholder."""
        data = self.dummy_inputs.get_dummy_mm_data(seq_len, mm_counts, mm_options)
        prompt = [placeholder(number) for number in range(1, mm_counts.get("image", 0) + 1)]
        return ProcessorInputs(prompt=prompt, mm_data_items=self.info.parse_mm_data(data, validate=False))

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        side = self.info.config.vision.image_size
        pixels = [np.array(image) for image in hf_data["images"]]
        for each in pixels:  # here it is the row's error, in the model's step it would end the engine
            if each.shape[0] % side or each.shape[1] % side:
                raise ValueError(f"a picture of shape {each.shape}, which is not whole crops of {side}")
        return BatchFeature({"pixels": [torch.from_numpy(each) for each in pixels]})

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {"pixels": MultiModalFieldConfig.batched("image")}

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, Any],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptReplacement]:
        config = self.info.config
        side, image_id = config.vision.image_size, config.vocab_size

        def places(index: int) -> list[int]:
            size = mm_items.get_items("image", ImageProcessorItems).get_image_size(index)
            return [image_id] * num_image_tokens(size.height // side, size.width // side, config.tokens_per_crop_side)

        return [PromptReplacement("image", target=lambda index: [placeholder(index + 1)], replacement=places)]

    def _recompute_cached_prompt_update(self, cached_update: Any, new_item_idx: int) -> Any:
        update = super()._recompute_cached_prompt_update(cached_update, new_item_idx)
        return update.with_target([placeholder(new_item_idx + 1)])


class Phi3Vision(phi3v.Phi3VForCausalLM):
    """vLLM's Phi-3-Vision with any tower. Parameters have the checkpoint's names, as there."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        nn.Module.__init__(self)
        folder = vllm_config.model_config.model
        hf_config = vllm_config.model_config.hf_config
        config, preprocessor = Phi3VisionConfig.from_pretrained(folder), PreprocessorConfig.from_pretrained(folder)
        self.config = hf_config
        self._mean_std = preprocessor.image_mean, preprocessor.image_std
        self.configure_mm_token_handling(config.vocab_size, [config.vocab_size])
        with self._mark_tower_model(vllm_config, "image"):
            self.embed_tokens = VocabParallelEmbedding(
                config.vocab_size,
                config.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=maybe_prefix(prefix, "model.embed_tokens"),
            )
            self.vision_embed_tokens = PictureEmbedding(config, "sdpa")
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config, prefix="", architectures=["LlamaForCausalLM"]
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: Any) -> Sequence[Tensor]:
        """HD pixels, uint8 (H, W, 3) each on any device, to features (T, D) each."""
        return self.vision_embed_tokens.encode(kwargs.get("pixels", ()), *self._mean_std)


def register() -> None:
    """Tells this process's vLLM of the model. May be called again."""
    AutoConfig.register(MODEL_TYPE, Phi3VConfig, exist_ok=True)
    annotate = MULTIMODAL_REGISTRY.register_processor(PictureProcessor, info=ProcessingInfo, dummy_inputs=DummyInputs)
    ModelRegistry.register_model(ARCHITECTURE, annotate(Phi3Vision))
