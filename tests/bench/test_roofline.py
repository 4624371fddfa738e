"""The work that the benchmark counts is what torch counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ray_job.bench.roofline import Machine, decode_bytes, measure_machine, prompt_flops, shares, vision_flops
from ray_job.engine.attention import PackedAttention
from ray_job.engine.kv_cache import KVPool
from ray_job.engine.row import Chunk, Prompt, Row
from ray_job.engine.spans import Span
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig, VisionConfig
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.packed import PackedPhi3Vision

CONFIG = Phi3VisionConfig(
    vocab_size=100,
    hidden_size=96,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    vision=VisionConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4),
)
PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.convolution)


@pytest.fixture(scope="module")
def model() -> Phi3VisionModel:
    return Phi3VisionModel(CONFIG, "eager").eval()


def products(counter: FlopCounterMode) -> int:
    counts = counter.get_flop_counts()["Global"]
    return sum(counts.get(name, 0) for name in PRODUCTS)


@torch.no_grad()
def test_a_crops_work(model: Phi3VisionModel) -> None:
    with FlopCounterMode(display=False) as counter:
        model.encode_pictures([torch.zeros(336, 672, 3, dtype=torch.uint8)])
    assert 3 * vision_flops(CONFIG) == pytest.approx(products(counter), rel=0.02)  # three crops, some separators


@torch.no_grad()
def test_a_prompts_work(model: Phi3VisionModel) -> None:
    packed, length = PackedPhi3Vision(model, free_bytes=0), 300
    row = Row(prompt=Prompt([1] * length, ()), num_tokens=length, max_tokens=length + 1, span=Span(0, length + 1))
    attention = PackedAttention(KVPool.of(packed, 400), [Chunk(row, 0, length)], packed.layers)
    embeds = packed.embed(torch.ones(length, dtype=torch.int64))
    with FlopCounterMode(display=False) as counter:
        packed.forward(
            embeds, torch.arange(length)[None], torch.zeros(length, dtype=torch.bool), attention.wanted_S, attention
        )
    linear = prompt_flops(CONFIG, {"prefill_tokens": length, "prefill_pairs": 0})
    assert linear == pytest.approx(products(counter), rel=0.02)
    pairs = length * (length + 1) // 2
    whole = prompt_flops(CONFIG, {"prefill_tokens": length, "prefill_pairs": pairs})
    assert whole - linear == 2 * (2 * 2 * 96 * pairs)  # two layers, two products of 96 numbers


def test_what_decoding_reads(model: Phi3VisionModel) -> None:
    linears = [each for each in model.model.layers.modules() if isinstance(each, nn.Linear)]
    weights = sum(each.weight.numel() for each in [*linears, model.lm_head])
    assert decode_bytes(CONFIG, {"decode_steps": 2, "decode_keys": 0}, 4) == 2 * 4 * weights
    assert decode_bytes(CONFIG, {"decode_steps": 0, "decode_keys": 5}, 2) == 5 * 2 * (3 * 2 * 2 * 16)


def test_shares_are_of_the_machines_best() -> None:
    machine = measure_machine(CONFIG, torch.float32, torch.device("cpu"))
    assert machine.flops_per_s > 1e8
    assert machine.copied_bytes_per_s > 1e8
    stats = {"crops": 7, "vision_s": 2.0, "prefill_tokens": 0, "prefill_pairs": 0, "prefill_s": 0.0}
    stats |= {"decode_steps": 0, "decode_keys": 0, "decode_s": 0.0}
    assert shares(CONFIG, stats, 4, Machine(100.0, 100.0)) == {"vision": 7 * vision_flops(CONFIG) / 2 / 100}
