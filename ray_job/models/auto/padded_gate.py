"""Which library models run in padded batches, and which of them a row at a time. Each answer is a reason, or None."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from ray_job.engine.padded_model import PaddedModel
from ray_job.models.auto.configuration import image_token_id, rope_types
from ray_job.models.auto.padded_pictures import FEATURES
from ray_job.models.casting import computing_dtype
from ray_job.rows import Sample
from ray_job.spec import GenerationParams

# Inputs of every token that a processor makes in some way of its own, and this package does not.
_UNKNOWN_INPUTS = ("moe_mm_token_type_ids", "cross_attention_mask", "image_embeds_position_mask", "qformer_input_ids")
_PROBE_LENGTHS, _PROBE_STEPS, _PROBE_SEED = (19, 11, 4), 3, 1
# Of the largest logit: sums in another order, not other masks or positions.
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def why_not_padded(model: Any) -> str | None:
    """Why a model cannot be run in padded batches, read on after "it"."""
    arguments = inspect.signature(model.forward).parameters
    if model.config.is_encoder_decoder:
        return "has an encoder for its prompts"
    if type(model).generate is not GenerationMixin.generate:
        return "generates in a way of its own"
    if unknown := [name for name in _UNKNOWN_INPUTS if name in arguments]:
        return f"wants {unknown[0]}, which is not made here"
    if FEATURES not in arguments or not hasattr(model.base_model, "get_image_features"):
        return "takes no features in its pictures' place"
    if image_token_id(model.config) is None:
        return "has no token for the places of a picture"
    if "dynamic" in rope_types(model.config.get_text_config(decoder=True)):
        return "has rotary factors (rope_type dynamic) that follow from the rows that ran before"
    return None


def why_alone(model: Any, padded: PaddedModel) -> str | None:
    """Why rows of a model must not share a batch, read on after "it". Runs a few tokens of text to find out."""
    if "longrope" in rope_types(model.config.get_text_config(decoder=True)):
        return "has rotary factors (rope_type longrope) that follow from a batch's longest row"
    samples = list(_probe_samples(model))
    together = _logits(padded, samples)
    alone = torch.cat([_logits(padded, [sample]) for sample in samples], dim=1)
    difference = float((together - alone).abs().max() / alone.abs().max())
    if difference <= _TOLERANCES.get(computing_dtype(model), 1e-1):  # NaN is not
        return None
    return f"answers differently in a batch than alone, by {difference:.2g} of the largest logit"


def _probe_samples(model: Any) -> Iterator[Sample]:
    """Texts of unlike lengths, without the ids that stand for pictures and the like."""
    config = model.config
    num_ids = model.get_input_embeddings().num_embeddings
    special = {value for name in dir(config) if "token" in name and isinstance(value := getattr(config, name), int)}
    plain = torch.tensor([token for token in range(num_ids) if token not in special][:4096])
    generator = torch.Generator().manual_seed(_PROBE_SEED)
    for key, length in enumerate(_PROBE_LENGTHS):
        chosen = torch.randint(len(plain), (length,), generator=generator)
        yield Sample(key, plain[chosen].tolist(), (), GenerationParams(max_new_tokens=_PROBE_STEPS))


@torch.inference_mode()
def _logits(padded: PaddedModel, samples: list[Sample]) -> Tensor:
    """Of the prompts' ends and of some tokens after them: (steps, B, V)."""
    steps: list[Tensor] = []

    def next_tokens(logits_BV: Tensor) -> list[int] | None:
        steps.append(logits_BV.cpu().clone())
        return None if len(steps) == _PROBE_STEPS else [sample.input_ids[len(steps)] for sample in samples]

    padded.generate(samples, {}, next_tokens)
    return torch.stack(steps)
