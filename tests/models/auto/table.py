"""README's table of library models: which engine runs them, made from what the tests run."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import transformers

from ray_job.models.auto.gate import misfit
from ray_job.models.auto.padded_gate import why_not_padded

# By the names of the tiny models that are compared with the library in five settings, processors included.
COMPARED = {
    "llava": "LLaVA",
    "llava_next": "LLaVA-Next",
    "llava_next_llama": "LLaVA-Next",
    "llava_next_mistral_window": "LLaVA-Next",
    "llava_next_qwen2": "LLaVA-Next",
    "llava_onevision": "LLaVA-OneVision",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "smolvlm": "SmolVLM",
    "idefics3": "Idefics3",
    "internvl": "InternVL",
    "internvl_qwen3": "InternVL",
    "gemma3": "Gemma 3",
    "paligemma": "PaliGemma",
    "mistral3": "Mistral 3",
    "glm4v": "GLM-4V",
}
# Of those whose pictures are arrays of chance.
ALONE = {
    "aria": "Aria",
    "aya_vision": "Aya Vision",
    "cohere2_vision": "Command A Vision",
    "deepseek_vl": "DeepSeek-VL",
    "exaone4_5": "EXAONE 4.5",
    "gemma4": "Gemma 4 31B and 26B",
    "gemma4_causal": "Gemma 4 31B and 26B",
    "glm46v": "GLM-4.6V",
    "glm4v_moe": "GLM-4.5V",
    "glm_ocr": "GLM-OCR",
    "got_ocr2": "GOT-OCR2",
    "idefics2": "Idefics2",
    "lighton_ocr": "LightOnOCR",
    "paddleocr_vl": "PaddleOCR-VL",
    "paligemma2": "PaliGemma 2",
    "qwen3_vl_moe": "Qwen3-VL-MoE",
    "vipllava": "ViP-LLaVA",
}
# By `model_type`: what the gate refuses by the configuration alone.
REFUSED = {
    "gemma4": "Gemma 4 E2B and E4B",
    "kimi_k25": "Kimi K2.5",
    "lfm3_vl": "LFM3-VL",
    "llama4": "Llama 4",
    "minicpmv4_6": "MiniCPM-V 4.6",
    "mllama": "Llama 3.2 Vision",
    "qwen3_5": "Qwen3.5",
}


def table() -> str:
    """As Markdown."""
    rows = [
        ("continuous", "answers are those of the library's `generate`, processor included", _listed(COMPARED.values())),
        ("continuous", "the same, with pictures of random numbers", _listed(ALONE.values())),
    ]
    refused: dict[tuple[str, str], list[str]] = {}
    for model_type, name in REFUSED.items():
        refused.setdefault(_refusal(model_type), []).append(name)
    rows += [(engine, why, _listed(names)) for (engine, why), names in sorted(refused.items(), reverse=True)]
    lines = ["| Engine | Tested, or why not continuous | Models |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {engine} | {why} | {models} |" for engine, why, models in rows)])


def _refusal(model_type: str) -> tuple[str, str]:
    """Which engine is left, and why."""
    config = transformers.AutoConfig.for_model(model_type)
    reason = misfit(config)
    assert reason is not None
    with torch.device("meta"):  # no memory for weights
        model = transformers.AutoModelForImageTextToText.from_config(config)
    objection = why_not_padded(model)
    return ("static batches", reason) if objection is None else ("none", f"{reason}, and it {objection}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
