"""Rotary tables against the official ones, and rows that cross from short to long factors."""

from __future__ import annotations

import pytest
import torch

from ray_job.models.phi3_vision.configuration import Phi3VisionConfig
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.rope import RopeTables

from .oracle import Compare, golden_row, greedy, read_json, read_tensors, with_config

ROPE = read_json("rope.json")
TENSORS = read_tensors("rope.safetensors")


def golden_config(family: str) -> Phi3VisionConfig:
    return Phi3VisionConfig(
        max_position_embeddings=131072,
        short_factor=tuple(ROPE[family]["short_factor"]),
        long_factor=tuple(ROPE[family]["long_factor"]),
    )


@pytest.mark.parametrize("family", ["phi3", "phi35"])
@pytest.mark.parametrize("name", ["short_max4095", "long_max4096", "long_max131071"])
def test_tables_are_the_official_ones(family: str, name: str, close: Compare) -> None:
    tables = RopeTables(golden_config(family))
    assert tables.attention_scaling == ROPE[family]["attention_scaling"]
    positions = torch.tensor(ROPE[family]["position_sets"][name])[None]
    is_long = torch.tensor([name.startswith("long")])
    cos, sin = tables.cos_sin(positions, is_long)
    close("inv_freq", tables.inv_freq_2F[int(is_long)], TENSORS[f"{family}.{name}.inv_freq"], 1e-9)
    close("cos", cos[0], TENSORS[f"{family}.{name}.cos"], 1e-6)
    close("sin", sin[0], TENSORS[f"{family}.{name}.sin"], 1e-6)


def test_each_row_takes_its_own_factors() -> None:
    tables = RopeTables(golden_config("phi3"))
    positions = torch.arange(5).repeat(2, 1)
    both, _ = tables.cos_sin(positions, torch.tensor([False, True]))
    for row, is_long in enumerate((False, True)):
        alone, _ = tables.cos_sin(positions[:1], torch.tensor([is_long]))
        assert torch.equal(both[row], alone[0])
    assert not torch.equal(both[0], both[1])


def test_plain_rope_has_one_table() -> None:
    tables = RopeTables(Phi3VisionConfig())
    assert tables.attention_scaling == 1.0
    assert torch.equal(tables.inv_freq_2F[0], tables.inv_freq_2F[1])


def test_casting_the_model_leaves_the_tables_alone(tiny_folder: object, sdpa_model: Phi3VisionModel) -> None:
    model = with_config(sdpa_model)
    before = model.rope.inv_freq_2F.clone()
    assert torch.equal(model.to(torch.bfloat16).rope.inv_freq_2F, before)
    assert model.rope.inv_freq_2F.dtype == torch.float32


@pytest.mark.parametrize("name", ["text_long", "img_wide"])
def test_crossing_while_decoding_equals_the_full_recompute(name: str, model: Phi3VisionModel, close: Compare) -> None:
    golden = ROPE["crossing"][f"{name}.phi35"]
    short = with_config(model, original_max_position_embeddings=golden["original_max_position_embeddings"])
    row = golden_row(model, name)
    steps = len(golden["greedy"])
    for use_cache in (True, False):
        (answer,) = greedy(short, [row], steps, use_cache=use_cache)
        assert answer.tokens == golden["full_recompute_greedy"]
        want = TENSORS[f"crossing.{name}.phi35.step_logits"]
        close(f"step_logits cache={use_cache}", torch.stack(answer.logits), want, 1e-4)


@pytest.mark.parametrize("name", ["text_long", "img_wide"])
def test_before_the_switch_phi3_is_equal_too(name: str, model: Phi3VisionModel, close: Compare) -> None:
    golden = ROPE["crossing"][f"{name}.phi3"]
    original = golden["original_max_position_embeddings"]
    steps = original - golden["prompt_len"] + 1
    short = with_config(model, original_max_position_embeddings=original)
    (answer,) = greedy(short, [golden_row(model, name)], steps)
    assert answer.tokens == golden["greedy"][:steps]
    close("step_logits", torch.stack(answer.logits), TENSORS[f"crossing.{name}.phi3.step_logits"][:steps], 1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_short_row_beside_a_long_one_is_unchanged(side: str, model: Phi3VisionModel, close: Compare) -> None:
    golden = ROPE["batch_switch.phi3"]
    short = with_config(model, original_max_position_embeddings=golden["original_max_position_embeddings"])
    rows = [golden_row(model, "text_short"), golden_row(model, "text_long")]
    batched = greedy(short, rows, 16, side=side)
    assert [answer.tokens for answer in batched] == [golden["single_short"], golden["single_long"]]
    for row, answer in zip(rows, batched, strict=True):
        (alone,) = greedy(short, [row], 16, side=side)
        close("logits", torch.stack(answer.logits), torch.stack(alone.logits), 1e-4)


def test_a_row_crossing_beside_others_leaves_them_unchanged(model: Phi3VisionModel) -> None:
    short = with_config(model, original_max_position_embeddings=71)
    rows = [golden_row(model, "text_short"), golden_row(model, "text_long")]
    batched = greedy(short, rows, 12)
    assert [answer.tokens for answer in batched] == [greedy(short, [row], 12)[0].tokens for row in rows]
    assert batched[1].tokens == ROPE["crossing"]["text_long.phi35"]["full_recompute_greedy"][:12]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_past_the_switch_does_not_count(side: str, model: Phi3VisionModel, close: Compare) -> None:
    golden = ROPE["overpad.phi3"]
    short = with_config(model, original_max_position_embeddings=golden["original_max_position_embeddings"])
    row = golden_row(model, "text_short")
    (padded,) = greedy(short, [row], 16, side=side, extra=golden["pads"])
    (alone,) = greedy(short, [row], 16)
    assert padded.tokens == alone.tokens
    close("logits", torch.stack(padded.logits), torch.stack(alone.logits), 1e-4)
