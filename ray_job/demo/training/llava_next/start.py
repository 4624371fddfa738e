"""What a new LLaVA-NeXT takes over from the demo's model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlavaNextForConditionalGeneration

from ray_job.demo.training.llava_next.folder import demo_folder
from ray_job.models.phi3_vision.rope import RopeTables
from ray_job.models.phi3_vision.weights import load


@torch.no_grad()
def fill_from_demo(model: LlavaNextForConditionalGeneration) -> None:
    """Fills a new model with what it can take over from the demo's."""
    demo = load(demo_folder(), dtype=torch.float32)
    pictures = demo.model.vision_embed_tokens
    inner: Any = model.model
    inner.vision_tower.load_state_dict(pictures.tower.state_dict())
    decoder = {name: weight for name, weight in demo.model.state_dict().items() if "vision_embed_tokens" not in name}
    _fill_rows(inner.language_model.embed_tokens.weight, decoder.pop("embed_tokens.weight"))
    _fill_rows(model.lm_head.weight, demo.lm_head.weight)
    # The demo's rotary tables scale queries and keys, these do not.
    scale = RopeTables(demo.config).attention_scaling ** 2
    for name, weight in decoder.items():
        if name.endswith("qkv_proj.weight"):
            weight[: demo.config.hidden_size] *= scale
    inner.language_model.load_state_dict(decoder, strict=False)  # the embedding is filled above
    projection = pictures.img_projection.state_dict()
    projector = inner.multi_modal_projector
    projector.linear_1.weight.copy_(sum(projection["0.weight"].chunk(4, dim=1)))
    projector.linear_1.bias.copy_(projection["0.bias"])
    projector.linear_2.weight.copy_(projection["2.weight"])
    projector.linear_2.bias.copy_(projection["2.bias"])
    inner.image_newline.copy_(pictures.img_projection(pictures.sub_GN.flatten()))


def _fill_rows(own: Tensor, taken: Tensor) -> None:
    """Tokens that the demo's model does not have get zeros."""
    own.zero_()
    own[: len(taken)] = taken
