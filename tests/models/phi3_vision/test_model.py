"""The model against the official one: features 1e-5, logits 1e-4 in float32, greedy tokens exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ray_job.errors import ModelError
from ray_job.models.phi3_vision import weights
from ray_job.models.phi3_vision.cache import KVCache
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor

from .oracle import (
    Compare,
    Row,
    expand,
    golden_crops,
    golden_row,
    greedy,
    logits_of,
    open_image,
    pad,
    read_json,
    read_tensors,
    with_config,
)

MODEL = read_json("model.json")
SINGLE = MODEL["tiny-mha"]["single"]
BATCHES = MODEL["tiny-mha"]["batch"]
TENSORS = read_tensors("model.safetensors")
STEPS = [0, 7, 15]  # of the 16 greedy steps, those whose logits are recorded
E2E = read_json("e2e.json")["tiny-mha.nc4"]["items"]


@pytest.mark.parametrize("name", SINGLE)
def test_logits_and_hidden_states(name: str, model: Phi3VisionModel, close: Compare) -> None:
    row = golden_row(model, name)
    seen: list[Tensor] = []
    hook = model.model.layers[0].register_forward_hook(lambda module, args, output: seen.append(output))
    logits = logits_of(model, row)
    hook.remove()
    positions = SINGLE[name]["positions"]
    close("logits", logits[positions], TENSORS[f"tiny-mha.{name}.logits"], 1e-4)
    assert logits.dtype == torch.float32
    assert torch.equal(logits.argmax(-1).int(), TENSORS[f"tiny-mha.{name}.argmax_all"])

    embeds = model.embed_row(torch.tensor(row.ids), row.features)
    positions_1L = torch.arange(len(row.ids))[None]
    is_long = torch.tensor([False])
    with torch.no_grad():
        last = model.hidden_states(embeds[None], position_ids_BL=positions_1L, is_long_B=is_long)[0]
    hidden = torch.stack([embeds, seen[0][0], last]).detach()[:, positions]
    close("hidden", hidden, TENSORS[f"tiny-mha.{name}.hidden"], 1e-4)


@pytest.mark.parametrize("name", SINGLE)
def test_greedy_tokens(name: str, model: Phi3VisionModel, close: Compare) -> None:
    golden, row = SINGLE[name], golden_row(model, name)
    (answer,) = greedy(model, [row], 16)
    assert answer.tokens == golden["greedy16_no_eos"]
    close(
        "step_logits",
        torch.stack([answer.logits[step] for step in STEPS]),
        TENSORS[f"tiny-mha.{name}.step_logits"],
        1e-4,
    )
    (stopped,) = greedy(model, [row], 16, eos=[golden["eos_used"]])
    assert stopped.tokens == golden["greedy_with_eos"]
    (uncached,) = greedy(model, [row], 5, use_cache=False)
    assert uncached.tokens == answer.tokens[:5]
    close("cached and uncached", torch.stack(answer.logits[:5]), torch.stack(uncached.logits), 1e-4)


@torch.no_grad()
def test_picture_features(model: Phi3VisionModel, close: Compare) -> None:
    sizes = MODEL["samples"]["img_wide"]["image_sizes"]
    pictures = model.model.vision_embed_tokens
    patches = pictures.tower(golden_crops("img_wide", sizes))
    close("clip", patches, TENSORS["tiny-mha.img_wide.clip_features_crops0to2"], 1e-5)
    arranged = pictures.arrange(pictures.merge(patches), 1, 2)
    close("arranged", arranged, TENSORS["tiny-mha.img_wide.hd_features_before_projection"], 1e-5)
    (features,) = golden_row(model, "img_wide").features
    close("projected", features, TENSORS["tiny-mha.img_wide.projected"], 1e-5)
    two = torch.cat(golden_row(model, "img_two").features)[::7]
    close("projected two", two, TENSORS["tiny-mha.img_two.projected"], 1e-5)


@torch.no_grad()
def test_features_do_not_depend_on_the_batch(model: Phi3VisionModel, close: Compare) -> None:
    names = ["img_wide", "img_tall", "img_two"]
    sizes = [MODEL["samples"][name]["image_sizes"] for name in names]
    crops = torch.cat([golden_crops(name, size) for name, size in zip(names, sizes, strict=True)])
    grid = [(height // 336, width // 336) for size in sizes for height, width in size]
    alone = [features for name in names for features in golden_row(model, name).features]
    for max_crops in (None, 1, 4):
        together = model.encode_crops(crops, grid, max_crops)
        for ours, theirs in zip(together, alone, strict=True):
            close(f"max_crops={max_crops}", ours, theirs, 1e-5)


@pytest.mark.parametrize("name", BATCHES)
def test_padded_batches_equal_single_rows(name: str, model: Phi3VisionModel, close: Compare) -> None:
    """Both paddings; the official right-padded answers are wrong and not what is compared with."""
    members, side = BATCHES[name]["members"], name.rsplit(".", 1)[1]
    answers = greedy(model, [golden_row(model, member) for member in members], 16, side=side)
    assert [answer.tokens for answer in answers] == [SINGLE[member]["greedy16_no_eos"] for member in members]
    if side == "left":
        assert [answer.tokens for answer in answers] == BATCHES[name]["greedy16_no_eos"]
    for member, answer in zip(members, answers, strict=True):
        close(
            member,
            torch.stack([answer.logits[step] for step in STEPS]),
            TENSORS[f"tiny-mha.{member}.step_logits"],
            1e-4,
        )


def test_rows_of_a_batch_stop_at_their_own_end(model: Phi3VisionModel) -> None:
    golden = MODEL["tiny-mha"]["batch_eos"]
    rows = [golden_row(model, member) for member in golden["members"]]
    for side in ("left", "right"):
        answers = greedy(model, rows, 16, eos=golden["eos_ids"], side=side)
        assert [answer.tokens for answer in answers] == golden["expected_from_single"]


def test_right_padding_needs_no_mask_at_prefill(model: Phi3VisionModel, close: Compare) -> None:
    rows = [golden_row(model, name) for name in ("text_short", "text_long")]
    batch = pad(model, rows, "right")
    with torch.no_grad():
        logits = model(batch.embeds, position_ids_BL=batch.position_ids, is_long_B=batch.is_long, last_B=batch.last)
    for row, got in zip(rows, logits, strict=True):
        close("last logits", got, logits_of(model, row)[-1], 1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_queries_are_finite(side: str, model: Phi3VisionModel) -> None:
    batch = pad(model, [golden_row(model, "text_short")], side, extra=7)
    logits = model(
        batch.embeds, position_ids_BL=batch.position_ids, attention_mask_BL=batch.mask.long(), is_long_B=batch.is_long
    )
    assert torch.isfinite(logits).all()


def test_sliding_window(model: Phi3VisionModel, close: Compare) -> None:
    golden = MODEL["sliding16"]
    row = golden_row(model, "text_long")
    windowed = with_config(model, sliding_window=16)
    logits = logits_of(windowed, row)
    close("logits", logits[golden["positions"]], TENSORS["tiny-mha.text_long.sliding16_logits"], 1e-4)
    differs = (logits - logits_of(model, row)).abs().amax(-1) > 1e-4
    assert int(differs.nonzero()[0]) == golden["first_position_that_differs_from_full"]
    (cached,), (uncached,) = (greedy(windowed, [row], 8, use_cache=flag) for flag in (True, False))
    close("cached and uncached", torch.stack(cached.logits), torch.stack(uncached.logits), 1e-4)


@pytest.mark.parametrize("capacity", [None, 80])
@pytest.mark.parametrize("chunk", [1, 7, 65])
@torch.no_grad()
def test_prefill_in_chunks(chunk: int, capacity: int | None, model: Phi3VisionModel, close: Compare) -> None:
    row = golden_row(model, "text_long")
    embeds = model.embed_row(torch.tensor(row.ids))[None]
    cache, pieces = KVCache(capacity), []
    for start in range(0, len(row.ids), chunk):
        positions = torch.arange(start, min(start + chunk, len(row.ids)))[None]
        piece = embeds[:, start : start + chunk]
        pieces.append(model(piece, position_ids_BL=positions, is_long_B=torch.tensor([False]), cache=cache)[0])
    assert cache.length == len(row.ids)
    close("logits", torch.cat(pieces), logits_of(model, row), 1e-4)


def test_a_full_cache_is_an_error(sdpa_model: Phi3VisionModel) -> None:
    embeds = sdpa_model.embed_row(torch.arange(9))[None]
    with pytest.raises(ValueError, match="room for 8 tokens, 9 are needed"):
        sdpa_model(embeds, position_ids_BL=torch.arange(9)[None], is_long_B=torch.tensor([False]), cache=KVCache(8))


@torch.no_grad()
def test_a_ready_mask_can_pack_rows(model: Phi3VisionModel, close: Compare) -> None:
    rows = [golden_row(model, name) for name in ("text_short", "text_long")]
    lengths = [len(row.ids) for row in rows]
    blocks = [torch.ones(length, length, dtype=torch.bool).tril() for length in lengths]
    mask = torch.block_diag(*blocks)[None, None]
    embeds = torch.cat([model.embed_row(torch.tensor(row.ids)) for row in rows])[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    is_long = torch.tensor([False])
    packed = model(embeds, position_ids_BL=positions, is_long_B=is_long, mask_BHLL=mask.bool())[0]
    for row, logits in zip(rows, packed.split(lengths), strict=True):
        close("logits", logits, logits_of(model, row), 1e-4)


@torch.no_grad()
def test_places_of_the_logits(sdpa_model: Phi3VisionModel) -> None:
    row = golden_row(sdpa_model, "text_short")
    embeds = sdpa_model.embed_row(torch.tensor(row.ids))[None].repeat(2, 1, 1)
    common = {"position_ids_BL": torch.arange(10).repeat(2, 1), "is_long_B": torch.tensor([False, False])}
    whole = sdpa_model(embeds, **common)
    kept = sdpa_model(embeds, **common, logits_to_keep=3)
    chosen = sdpa_model(embeds, **common, last_B=torch.tensor([4, 9]))
    torch.testing.assert_close(kept, whole[:, -3:], atol=1e-5, rtol=0)
    torch.testing.assert_close(chosen, torch.stack([whole[0, 4], whole[1, 9]]), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="not both"):
        sdpa_model(embeds, **common, logits_to_keep=1, last_B=torch.tensor([0, 0]))
    with pytest.raises(ValueError, match=r"attention_mask_BL is \(2, 9\)"):
        sdpa_model(embeds, **common, attention_mask_BL=torch.ones(2, 9))
    mask = torch.ones(2, 1, 10, 10, dtype=torch.bool)
    with pytest.raises(ValueError, match="not both"):
        sdpa_model(embeds, **common, attention_mask_BL=torch.ones(2, 10), mask_BHLL=mask)


class TestOfficialFailureModes:
    """What fails late or silently in the official code (model.json, failure_modes)."""

    def test_ids_are_not_changed(self, sdpa_model: Phi3VisionModel) -> None:
        row = golden_row(sdpa_model, "img_wide")
        ids = torch.tensor(row.ids)
        first = sdpa_model.embed_row(ids, row.features)
        assert torch.equal(ids, torch.tensor(row.ids))
        assert torch.equal(sdpa_model.embed_row(ids, row.features), first)

    def test_placeholders_must_match_the_features(self, sdpa_model: Phi3VisionModel) -> None:
        row = golden_row(sdpa_model, "img_wide")
        one_less = [token_id for place, token_id in enumerate(row.ids) if place != row.ids.index(-1)]
        wrong: list[tuple[list[int], list[Tensor]]] = [
            (one_less, row.features),
            ([*row.ids, *[-1] * 457], row.features),
            (row.ids, []),
            (row.ids, row.features * 2),
            ([1, 2], row.features),
        ]
        for ids, features in wrong:
            with pytest.raises(ValueError, match="do not match the features"):
                sdpa_model.embed_row(torch.tensor(ids), features)

    def test_swapped_placeholders_take_their_own_pictures(self, sdpa_model: Phi3VisionModel) -> None:
        row = golden_row(sdpa_model, "img_two")
        swap = {-1: -2, -2: -1}
        swapped = Row([swap.get(token_id, token_id) for token_id in row.ids], row.features[::-1])
        assert torch.equal(logits_of(sdpa_model, row), logits_of(sdpa_model, swapped))

    def test_an_id_beyond_the_vocabulary(self, sdpa_model: Phi3VisionModel) -> None:
        with pytest.raises(ValueError, match="token id 424 is outside the vocabulary of 424"):
            sdpa_model.embed_row(torch.tensor([1, 424]))

    def test_the_pad_id_in_a_prompt_is_seen(self, model: Phi3VisionModel, close: Compare) -> None:
        pad_id = model.config.pad_token_id
        rows = [Row([1, 5, pad_id, 7], []), golden_row(model, "text_long")]
        alone = greedy(model, rows[:1], 4)[0]
        for side in ("left", "right"):
            batched = greedy(model, rows, 4, side=side)[0]
            close(side, torch.stack(batched.logits), torch.stack(alone.logits), 1e-4)

    def test_crops_must_match_the_sizes(self, sdpa_model: Phi3VisionModel) -> None:
        with pytest.raises(ValueError, match="5 crops given"):
            sdpa_model.encode_crops(torch.zeros(5, 3, 336, 336), [(1, 2)])
        assert sdpa_model.encode_pictures([]) == []


@pytest.mark.parametrize("item", E2E, ids=lambda item: item["name"])
def test_picture_and_prompt_to_text(
    item: dict[str, Any], model: Phi3VisionModel, tiny_folder: Path, close: Compare
) -> None:
    processor = Phi3VisionProcessor.from_pretrained(tiny_folder, num_crops=4)
    encoded = processor.process(item["text"], [open_image(name) for name in item["images"]])
    assert encoded.input_ids == expand(item["input_ids_rle"])
    assert [list(picture.shape[:2]) for picture in encoded.pictures] == item["image_sizes"]
    with torch.no_grad():
        features = model.encode_pictures([torch.from_numpy(picture) for picture in encoded.pictures], max_crops=4)
    (answer,) = greedy(model, [Row(encoded.input_ids, features)], 16)
    assert answer.tokens == item["greedy16_no_eos"]
    close("first logits", answer.logits[0][:8], torch.tensor(item["first_step_logits_first8"]), 1e-4)
    assert processor.decode(answer.tokens) == item["decoded_skip_special"]


@torch.no_grad()
def test_bfloat16_is_as_far_from_float32_as_officially(tiny_folder: Path, close: Compare) -> None:
    """Two bfloat16 runs round in different places: each is compared with float32, within twice the official."""
    official = MODEL["bf16"]["max_abs_diff_vs_fp32"]
    model = weights.load(tiny_folder, dtype=torch.bfloat16)
    logits = logits_of(model, golden_row(model, "img_wide"))
    assert logits.dtype == torch.float32
    close("against float32", logits[-1], TENSORS["tiny-mha.img_wide.logits"][-1], 2 * official)
    close("against official", logits[-1], TENSORS["tiny-mha.img_wide.bf16_last_logits"], 2 * official)


def test_float16_runs(tiny_folder: Path) -> None:
    model = weights.load(tiny_folder, dtype=torch.float16)
    assert torch.isfinite(logits_of(model, golden_row(model, "text_long"))).all()


def test_gradients_reach_every_part_that_is_used(sdpa_model: Phi3VisionModel) -> None:
    model = with_config(sdpa_model).train()
    pixels = torch.randint(0, 256, (336, 672, 3), dtype=torch.uint8)
    features = model.encode_pictures([pixels])
    row = golden_row(sdpa_model, "img_wide")
    embeds = model.embed_row(torch.tensor(row.ids), features)[None]
    positions = torch.arange(len(row.ids))[None]
    logits = model(embeds, position_ids_BL=positions, is_long_B=torch.tensor([False]), logits_to_keep=8)
    logits.square().mean().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    tower = "model.vision_embed_tokens.img_processor.vision_model."
    unused = (f"{tower}encoder.layers.2.", f"{tower}post_layernorm.")
    assert without == {name for name, _ in model.named_parameters() if name.startswith(unused)}


def test_unknown_attention() -> None:
    with pytest.raises(ModelError, match="attention is 'flash'; allowed: 'sdpa', 'eager'"):
        Phi3VisionModel(Phi3VisionConfig(), "flash")  # type: ignore[arg-type]
