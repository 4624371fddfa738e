"""What fits the continuous engine and what does not, and why; nothing that would be silently wrong gets through."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers

from ray_job.engine.packed_model import AttentionLayer, PromptLayout
from ray_job.models.auto.families.deep_stack import DeepStack
from ray_job.models.auto.families.seen_both_ways import PictureBlocks, PromptBlock
from ray_job.models.auto.families.table import family_of
from ray_job.models.auto.gate import fit, misfit
from ray_job.models.auto.normalization import Normalization
from ray_job.models.auto.packed import PackedAuto
from ray_job.models.auto.probe import check_answers
from ray_job.models.auto.unfit import Unfit
from ray_job.rows import Picture, Sample
from ray_job.spec import GenerationParams
from tests.models.auto import decoders, models_alone
from tests.models.auto.library_rows import family, few
from tests.models.auto.settings import SETTINGS, answers

HALF = Normalization(1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
MLA = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1}
LONG = {"long_factor": [2.0] * 8, "short_factor": [1.0] * 8, "original_max_position_embeddings": 16, "factor": 2.0}
# A text decoder, what is changed of it, and a part of the reason.
MISFITS: list[tuple[str, dict[str, Any], str]] = [
    ("gpt_oss", {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}, "sinks"),
    ("stablelm", {}, "do not hand down"),
    ("nemotron", {}, "do not hand down"),
    ("doge", {}, "masks of their own"),
    ("diffllama", {}, "layer 0 attends where layer 1 is due"),
    ("deepseek_v3", {**MLA, **EXPERTS, "n_group": 1, "topk_group": 1}, "latent keys"),
    ("llama4_text", {"head_dim": 16, "num_local_experts": 2, "attention_chunk_size": 8}, "chunked_attention"),
    (
        "qwen3_next",
        {"num_experts": 4, "num_experts_per_tok": 2, "layer_types": [*["linear_attention"] * 2, "full_attention"]},
        "linear_attention",
    ),
    ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}, "conv"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "longest row"),
    ("llama", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **LONG}}, "longest row"),
    ("gemma4_text", {"head_dim": 16, "hidden_size_per_layer_input": 16}, "embeddings of tokens of their own"),
]


def rows(vocab: int = 256) -> list[Sample]:
    """Two rows of different lengths, each with a picture of 28 × 28 pixels in four tokens."""
    rng = np.random.default_rng(0)
    samples = []
    for key, length in enumerate((9, 21)):
        picture = Picture(bytes([key]) * 16, {"pixel_values": rng.integers(0, 256, (1, 3, 28, 28), dtype=np.uint8)})
        ids = [*rng.integers(0, vocab, 3).tolist(), *[-1] * 4, *rng.integers(0, vocab, length).tolist()]
        samples.append(Sample(key, ids, [picture], GenerationParams(max_new_tokens=8)))
    return samples


@pytest.mark.parametrize(("name", "changed", "reason"), MISFITS, ids=[f"{each[0]}-{each[2]}" for each in MISFITS])
def test_what_does_not_fit_says_why_and_stays_as_it_was(name: str, changed: dict[str, Any], reason: str) -> None:
    model = decoders.over(decoders.config(name, **changed))
    attention = model.get_decoder().config._attn_implementation
    with pytest.raises(Unfit, match=reason):
        fit(model, HALF, rows())
    assert model.get_decoder().config._attn_implementation == attention
    ids = torch.tensor([rows()[0].input_ids]).clamp_min(0)
    assert torch.isfinite(model(input_ids=ids).logits).all()


@pytest.mark.parametrize("name", decoders.FIT)
def test_text_decoders_that_fit(name: str) -> None:
    packed = fit(decoders.over(decoders.config(name)), HALF, rows())
    assert len(packed.layers) == 3
    windows = {layer.sliding_window for layer in packed.layers}
    assert windows == ({5} if name in ("mistral", "starcoder2") else {5, None} if 5 in windows else {None})


@pytest.mark.parametrize("rope", decoders.ROPES)
def test_kinds_of_rotary_factors_that_fit(rope: str) -> None:
    parameters = {"rope_type": rope, "rope_theta": 10000.0, **decoders.ROPES[rope]}
    fit(decoders.over(decoders.config("llama", rope_parameters=parameters)), HALF, rows())


def test_soft_caps_and_scales_are_read_off_the_layers() -> None:
    packed = fit(decoders.over(decoders.config("gemma2")), HALF, rows())
    assert packed.layers[0] == AttentionLayer(2, 16, 5, 5.0)
    assert packed.layers[1] == AttentionLayer(2, 16, None, 5.0)
    assert packed._query_scales == pytest.approx([(16 / 24) ** 0.5] * 3)


def test_layers_of_different_sizes_are_read_off_the_layers() -> None:
    made = models_alone.make("gemma4")
    packed = fit(made, Normalization(), models_alone.rows("gemma4", 2))
    assert [layer.head_dim for layer in packed.layers] == [16, 16, 32]


def test_a_configuration_alone_may_tell() -> None:
    text = decoders.config("llama4_text", head_dim=16)
    assert "chunked" in str(misfit(transformers.LlavaConfig(text_config=text)))
    types = ["sliding_attention", "full_attention"] * 2
    text = decoders.config("gemma4_text", head_dim=16, num_hidden_layers=4, num_kv_shared_layers=2, layer_types=types)
    assert "share keys" in str(misfit(transformers.LlavaConfig(text_config=text)))
    assert misfit(transformers.LlavaConfig(text_config=decoders.config("llama"))) is None


def test_positions_by_place_in_the_batch_are_noticed() -> None:
    """As in decoders whose positions come with the mask, or are counted anew in each call."""
    model = decoders.over(decoders.config("llama"))
    rope = model.get_decoder().rotary_emb
    forward = rope.forward

    def by_place(hidden: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return forward(hidden, torch.arange(hidden.shape[1])[None])

    rope.forward = by_place
    with pytest.raises(Unfit, match="logits differ"):
        fit(model, HALF, rows())


def test_tokens_that_touch_their_neighbours_are_noticed() -> None:
    model = decoders.over(decoders.config("llama"))
    model.get_decoder().layers[1].mlp.register_forward_pre_hook(lambda _, args: (args[0] + args[0].roll(1, dims=1),))
    with pytest.raises(Unfit, match="logits differ"):
        fit(model, HALF, rows())


def test_logits_that_are_no_numbers_are_no_answer() -> None:
    model = decoders.over(decoders.config("llama"))
    model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(Unfit, match="logits differ"):
        fit(model, HALF, rows())


def test_a_window_of_other_layers_than_configured_is_noticed() -> None:
    model = decoders.over(decoders.config("cohere2"))
    model.get_decoder().layers[1].self_attn.sliding_window = 6
    with pytest.raises(Unfit, match="windows"):
        fit(model, HALF, rows())


def test_memory_that_is_short_is_no_misfit() -> None:
    model = decoders.over(decoders.config("llama"))

    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.get_decoder().layers[0].mlp.register_forward_pre_hook(too_large)
    with pytest.raises(torch.OutOfMemoryError):
        fit(model, HALF, rows())


class LaterPositions(PackedAuto):
    """Positions are one too large from the middle of a prompt on."""

    def layout(self, ids_L: npt.NDArray[np.int32], pictures: Sequence[Picture]) -> PromptLayout:
        layout = super().layout(ids_L, pictures)
        positions_AL = layout.positions_AL.copy()
        positions_AL[:, len(ids_L) // 2 :] += 1
        return dataclasses.replace(layout, positions_AL=positions_AL)


class OnePosition(PackedAuto):
    """A picture's tokens stand side by side on all axes."""

    def layout(self, ids_L: npt.NDArray[np.int32], pictures: Sequence[Picture]) -> PromptLayout:
        return PromptLayout.in_order(len(ids_L), self.num_axes)


class WiderWindow(PackedAuto):
    """Queries see one key more."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        wider = [layer.sliding_window and layer.sliding_window + 1 for layer in self.layers]
        self.layers = [
            dataclasses.replace(layer, sliding_window=w) for layer, w in zip(self.layers, wider, strict=True)
        ]


class NoDeepFeatures(DeepStack):
    """Pictures have what goes into the first layer alone."""

    def _features(self, found: Any, num_pictures: int) -> list[torch.Tensor]:
        features = super()._features(found, num_pictures)
        width = self._embedding.embedding_dim
        return [torch.cat((each[:, :width], torch.zeros_like(each[:, width:])), dim=-1) for each in features]


class NoBlocks(PackedAuto):
    """No token sees a later one."""

    def blocks(self, ids_L: npt.NDArray[np.int32]) -> tuple[tuple[int, int], ...]:
        return ()


MUTATED = [
    ("llava_next", LaterPositions),
    ("qwen2_5_vl", LaterPositions),
    ("qwen2_5_vl", OnePosition),
    ("glm4v", OnePosition),
    ("llava_next_mistral_window", WiderWindow),
    ("qwen3_vl", NoDeepFeatures),
    ("gemma3", NoBlocks),
    ("paligemma", NoBlocks),
]


@pytest.mark.parametrize(("name", "mutation"), MUTATED, ids=[f"{name}-{each.__name__}" for name, each in MUTATED])
def test_a_wrong_adapter_is_noticed(name: str, mutation: type[PackedAuto]) -> None:
    """By the rows' answers always; by the probe wherever a row's own prompt shows it."""
    made = family(name)
    own = family_of(made.model.config.model_type)
    wrong = type("Wrong", (mutation, own) if not issubclass(mutation, own) else (mutation,), {})(
        made.model, made.normalization
    )
    try:
        assert answers(wrong, made.samples, **SETTINGS["together"]) != made.answers
        if mutation is not WiderWindow:  # the probe has windows of its own
            with pytest.raises(Unfit, match="logits differ"):
                check_answers(wrong, made.model, few(made))
    finally:
        wrong.release()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "mutation"), [("qwen3_vl", NoDeepFeatures), ("gemma3", NoBlocks)])
def test_in_16_bits_rounding_is_allowed_and_no_more(name: str, mutation: type[PackedAuto], dtype: torch.dtype) -> None:
    made = family(name)
    model = copy.deepcopy(made.model).to(dtype)
    packed = fit(model, made.normalization, few(made))
    packed.release()
    own = type(packed)
    wrong = type("Wrong", (mutation, own) if not issubclass(mutation, own) else (mutation,), {})
    with pytest.raises(Unfit, match="logits differ"):
        check_answers(wrong(model, made.normalization), model, few(made))


def test_rounding_of_many_layers_is_allowed_in_16_bits() -> None:
    model = decoders.over(decoders.config("gemma", num_hidden_layers=48)).to(torch.bfloat16)
    fit(model, HALF, rows())


def test_families_that_need_more_have_their_classes() -> None:
    assert family_of("paligemma") is PromptBlock
    assert family_of("gemma3") is PictureBlocks
    assert family_of("llava") is PackedAuto
