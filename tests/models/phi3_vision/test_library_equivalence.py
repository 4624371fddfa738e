"""Our layers against the transformers library's whole public models, for shapes the golden data does not have.

Only its public classes are used, called as a user would: releases rename what is inside.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3ForCausalLM

from ray_job.models.phi3_vision import weights
from ray_job.models.phi3_vision.activations import ACTIVATIONS
from ray_job.models.phi3_vision.config_fields import ACTIVATION_NAMES
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig, VisionConfig
from ray_job.models.phi3_vision.model import Phi3VisionModel

from .oracle import Compare, Row, greedy, logits_of

TOWER = VisionConfig(56, 14, 24, 40, 3, 3)
SHAPE: dict[str, int] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 16,
    "pad_token_id": 0,
}
CONFIG = Phi3VisionConfig(
    **SHAPE,  # type: ignore[arg-type]
    short_factor=(1.0, 1.1, 1.5, 2.0),
    long_factor=(1.2, 3.0, 7.0, 9.0),
    initializer_range=0.2,
    vision=TOWER,
)


def seeded(attention: Literal["sdpa", "eager"], tower: VisionConfig = TOWER) -> Phi3VisionModel:
    model = Phi3VisionModel(dataclasses.replace(CONFIG, vision=tower), attention)
    weights.init_weights(model, 0)
    return model.eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("length", [1, 16, 17, 60])
def test_decoder_with_grouped_heads(attention: Literal["sdpa", "eager"], length: int, close: Compare) -> None:
    ours = seeded(attention)
    library = Phi3Config(
        **SHAPE,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": list(CONFIG.short_factor or ()),
            "long_factor": list(CONFIG.long_factor or ()),
            "original_max_position_embeddings": 16,
        },
        attn_implementation="eager",
    )
    theirs = Phi3ForCausalLM(library).eval()
    decoder = {name: tensor for name, tensor in ours.state_dict().items() if "vision_embed" not in name}
    theirs.load_state_dict(decoder)
    ids = torch.randint(1, 50, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    with torch.no_grad():
        want = theirs(torch.tensor([ids])).logits[0]
    close("logits", logits_of(ours, Row(ids, [])), want, 1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_grouped_heads_cached_and_padded(attention: Literal["sdpa", "eager"], close: Compare) -> None:
    model = seeded(attention)
    rows = [Row([1, 2, 3], []), Row(list(range(1, 12)), []), Row(list(range(20, 45)), [])]
    for side in ("left", "right"):
        batched = greedy(model, rows, 10, side=side)
        for row, answer in zip(rows, batched, strict=True):
            (alone,) = greedy(model, [row], 10, use_cache=False)
            assert answer.tokens == alone.tokens
            close(side, torch.stack(answer.logits), torch.stack(alone.logits), 1e-4)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_vision_tower_of_another_shape(attention: Literal["sdpa", "eager"], activation: str, close: Compare) -> None:
    ours = seeded(attention, dataclasses.replace(TOWER, hidden_act=activation)).model.vision_embed_tokens.tower
    library = CLIPVisionConfig(
        image_size=56,
        patch_size=14,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        hidden_act=activation,
        attn_implementation="eager",
    )
    theirs = CLIPVisionModel(library).eval()
    # Releases of the library differ in what stands before the names.
    ours_by_name = ours.state_dict()
    prefix = next(name for name in theirs.state_dict() if name.endswith("pre_layrnorm.weight"))
    prefix = prefix.removesuffix("pre_layrnorm.weight")
    theirs.load_state_dict({prefix + name: tensor for name, tensor in ours_by_name.items()})
    crops = torch.randn(5, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = theirs(crops, output_hidden_states=True).hidden_states[-2][:, 1:]
        close("features", ours(crops), want, 1e-5)


def test_small_crops_from_pixels_to_logits() -> None:
    model = seeded("sdpa")
    picture = torch.randint(0, 256, (112, 56, 3), dtype=torch.uint8)
    with torch.no_grad():
        (features,) = model.encode_pictures([picture])
    tokens = (2 * 1 + 1) * 4 + 1 + (2 + 1) * 2
    assert features.shape == (tokens, 32)
    assert torch.isfinite(logits_of(model, Row([1, *[-1] * tokens, 2], [features]))).all()


def test_the_configuration_knows_the_activations_there_are() -> None:
    assert set(ACTIVATION_NAMES) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_activations_are_the_same_with_and_without_gradients(name: str) -> None:
    x = torch.linspace(-9, 9, 1001)
    with torch.no_grad():
        without = ACTIVATIONS[name](x)
    assert torch.equal(without, ACTIVATIONS[name](x.clone().requires_grad_()).detach())
    assert torch.equal(x, torch.linspace(-9, 9, 1001))  # its input is left alone
