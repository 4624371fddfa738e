"""How close an engine comes to the machine's limits: matrix products for pictures and prompts, memory bandwidth for
decoding, both measured in the same run.

Counted is what the answers need, by the model's shape: products with weights, and attention's two products over the
keys each token sees. So what an engine computes besides, such as hidden scores and padding, lowers its share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.benchmark import Timer

from ray_job.models.phi3_vision.configuration import Phi3VisionConfig

_MIN_RUN_S = 1.0
_COPIED_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Machine:
    """The best rates of one device."""

    flops_per_s: float  # of a product of matrices with this model's widths
    copied_bytes_per_s: float  # read and written ones, both counted


def measure_machine(config: Phi3VisionConfig, dtype: torch.dtype, device: torch.device) -> Machine:
    """The best rate of about a second of tries, for each."""
    size = 2048 if device.type == "cpu" else 8192
    a = torch.randn(size, config.hidden_size, device=device).to(dtype)
    b = torch.randn(config.hidden_size, size, device=device).to(dtype)
    product_s = _best_s(lambda: a @ b)
    source = torch.empty(_COPIED_BYTES // dtype.itemsize, dtype=dtype, device=device).zero_()
    target = torch.empty_like(source).zero_()
    copy_s = _best_s(lambda: target.copy_(source))
    return Machine(2 * size * size * config.hidden_size / product_s, 2 * _COPIED_BYTES / copy_s)


def _best_s(work: Callable[[], Any]) -> float:
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())  # it waits for a GPU
    return min(timer.blocked_autorange(min_run_time=_MIN_RUN_S).times)


def shares(config: Phi3VisionConfig, stats: Mapping[str, Any], itemsize: int, machine: Machine) -> dict[str, float]:
    """The share of the machine's best that each stage reached; a stage that did nothing is left out.

    Args:
        config: of the model.
        stats: `EngineStats` as a dictionary.
        itemsize: bytes of a weight, and of a number in the key/value pool.
        machine: measured in the same run.
    """
    done = {
        "vision": (vision_flops(config) * stats["crops"], stats["vision_s"], machine.flops_per_s),
        "prefill": (prompt_flops(config, stats), stats["prefill_s"], machine.flops_per_s),
        "decode": (decode_bytes(config, stats, itemsize), stats["decode_s"], machine.copied_bytes_per_s),
    }
    return {name: work / seconds / best for name, (work, seconds, best) in done.items() if work and seconds}


def vision_flops(config: Phi3VisionConfig) -> int:
    """Floating-point operations of one crop: the tower up to its last layer but one, and the projector."""
    vision, width = config.vision, config.vision.hidden_size
    num_patches = (vision.image_size // vision.patch_size) ** 2
    layer = 2 * (4 * width**2 + 2 * width * vision.intermediate_size) + 4 * (num_patches + 1) * width
    patches = 2 * num_patches * 3 * vision.patch_size**2 * width
    projector = 2 * config.tokens_per_crop_side**2 * config.hidden_size * (config.merged_dim + config.hidden_size)
    return (vision.num_hidden_layers - 1) * (num_patches + 1) * layer + patches + projector


def prompt_flops(config: Phi3VisionConfig, stats: Mapping[str, Any]) -> int:
    """Floating-point operations of the prompt tokens computed; of the last layer only keys and values are."""
    keys_values = 2 * 2 * config.hidden_size * config.num_key_value_heads * config.head_dim
    layers = (config.num_hidden_layers - 1) * 2 * _layer_weights(config) + keys_values
    pairs = 4 * config.hidden_size * (config.num_hidden_layers - 1)
    return int(stats["prefill_tokens"] * layers + stats["prefill_pairs"] * pairs)


def decode_bytes(config: Phi3VisionConfig, stats: Mapping[str, Any], itemsize: int) -> int:
    """Bytes read in steps that only decode: the decoder's weights once a step, each row's keys and values."""
    weights = config.num_hidden_layers * _layer_weights(config) + config.vocab_size * config.hidden_size
    key_value = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return int(stats["decode_steps"] * weights + stats["decode_keys"] * key_value) * itemsize


def _layer_weights(config: Phi3VisionConfig) -> int:
    """How many weights a decoder layer's matrix products have."""
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    attention = config.hidden_size * config.head_dim * (heads + config.num_attention_heads)
    return attention + 3 * config.hidden_size * config.intermediate_size
