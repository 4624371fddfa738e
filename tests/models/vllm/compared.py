"""Which families `test_library.py` runs over vLLM, and what README.md says of each. Imports nothing."""

from __future__ import annotations

COMPARED = {
    "llava": "LLaVA",
    "llava_next": "LLaVA-NeXT",
    "llava_onevision": "LLaVA-OneVision",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "idefics3": "Idefics3",
    "smolvlm": "SmolVLM",
    "internvl": "InternVL",
    "internvl_qwen3": "InternVL with Qwen3",
    "mistral3": "Mistral 3",
}
"""Whose tokens are the library's, all of them."""

REFUSED = {
    "gemma3": "vLLM's attention for CPUs shows each the earlier ones alone",
    "paligemma": "a prompt of PaliGemma sees all of itself",
}
"""What vLLM computes otherwise, and the words of the refusal."""
