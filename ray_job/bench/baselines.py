"""What a user would run instead of the engine, with the same weights, rows and dtype.

They answer every row in full: the weights are random and no token ends an answer.

Shapes: B rows, L tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Phi3Config, Phi3ForCausalLM

from ray_job.engine.collate import Batch, collate
from ray_job.models.phi3_vision.cache import KVCache
from ray_job.models.phi3_vision.crops import pixels_to_crops
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.processor import PIXELS
from ray_job.rows import Sample

BATCH_ROWS = 8

Answers = dict[int, list[int]]  # tokens by key
Runner = Callable[[Sequence[Sample]], Answers]


@torch.inference_mode()
def recipe(model: Phi3VisionModel, samples: Sequence[Sample], num_crops: int) -> Answers:
    """The published recipe: batches of 8 in file order, left-padded, each until its longest answer.

    As in the official code, every picture is encoded with zero crops up to `num_crops` + 1, logits of a prompt are
    computed at all its places, and each step appends to the cache by copying it.
    """
    answers: Answers = {}
    for first in range(0, len(samples), BATCH_ROWS):
        rows = samples[first : first + BATCH_ROWS]
        batch = collate(rows, pad_id=0)
        features = [_padded_features(model, sample, num_crops) for sample in rows]
        embeds_BLD = _embeds(model, rows, features)
        steps = max(sample.params.max_new_tokens for sample in rows)
        tokens_BL = _greedy(model, embeds_BLD, batch, steps)
        for sample, tokens in zip(rows, tokens_BL.tolist(), strict=True):
            answers[sample.key] = tokens[: sample.params.max_new_tokens]
    return answers


def library(model: Phi3VisionModel) -> Runner:
    """transformers' own `generate` over its Phi3ForCausalLM, batches of 8 alike in answer length."""
    decoder = _library_decoder(model)

    @torch.inference_mode()
    def run(samples: Sequence[Sample]) -> Answers:
        answers: Answers = {}
        ordered = sorted(samples, key=lambda sample: (sample.params.max_new_tokens, len(sample.input_ids)))
        for first in range(0, len(ordered), BATCH_ROWS):
            rows = ordered[first : first + BATCH_ROWS]
            batch = collate(rows, pad_id=0)
            pixels = [torch.tensor(picture.arrays[PIXELS]) for sample in rows for picture in sample.pictures]
            found = iter(model.encode_pictures(pixels))
            features = [[next(found) for _ in sample.pictures] for sample in rows]
            tokens_BL = decoder.generate(
                inputs_embeds=_embeds(model, rows, features),
                attention_mask=batch.attention_mask_BL.long().to(model.device),
                max_new_tokens=rows[-1].params.max_new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            for sample, tokens in zip(rows, tokens_BL.tolist(), strict=True):
                answers[sample.key] = tokens[: sample.params.max_new_tokens]
        return answers

    return run


def _padded_features(model: Phi3VisionModel, sample: Sample, num_crops: int) -> list[Tensor]:
    """A picture's features; its padding crops are encoded too, and thrown away."""
    vision = model.model.vision_embed_tokens
    found = []
    for picture in sample.pictures:
        crops_N3CC = pixels_to_crops(torch.tensor(picture.arrays[PIXELS]).to(model.device))
        missing = max(0, num_crops + 1 - len(crops_N3CC))
        padded_N3CC = torch.cat([crops_N3CC, crops_N3CC.new_zeros((missing, *crops_N3CC.shape[1:]))])
        merged_NSSM = vision.merge(vision.tower(padded_N3CC))[: len(crops_N3CC)]
        rows, cols = picture.arrays[PIXELS].shape[0] // 336, picture.arrays[PIXELS].shape[1] // 336
        found.append(vision.img_projection(vision.arrange(merged_NSSM, rows, cols)))
    return found


def _embeds(model: Phi3VisionModel, rows: Sequence[Sample], features: Sequence[list[Tensor]]) -> Tensor:
    """(B, L, D), left-padded."""
    pairs = zip(rows, features, strict=True)
    rows_LD = [model.embed_row(torch.tensor(sample.input_ids), found) for sample, found in pairs]
    return pad_sequence(rows_LD, batch_first=True, padding_side="left")


def _greedy(model: Phi3VisionModel, embeds_BLD: Tensor, batch: Batch, steps: int) -> Tensor:
    """`steps` tokens of every row, (B, steps)."""
    device, cache = model.device, KVCache()
    mask_BL = batch.attention_mask_BL.to(device)
    positions_BL = batch.position_ids_BL.to(device)
    is_long_B = torch.tensor([model.config.is_long(length) for length in batch.lengths_B.tolist()], device=device)
    tokens = []
    for _ in range(steps):
        logits_BLV = model.forward(
            embeds_BLD, position_ids_BL=positions_BL, is_long_B=is_long_B, attention_mask_BL=mask_BL, cache=cache
        )
        tokens.append(logits_BLV[:, -1].argmax(-1, keepdim=True))
        embeds_BLD = model.model.embed_tokens(tokens[-1])
        mask_BL = torch.cat([mask_BL, mask_BL.new_ones((len(mask_BL), 1))], dim=1)
        positions_BL = positions_BL[:, -1:] + 1
    return torch.cat(tokens, dim=1)


def _library_decoder(model: Phi3VisionModel) -> Any:  # the library's annotations of `generate` do not hold
    """The library's class over the same weight tensors."""
    config = model.config
    assert config.short_factor is not None
    assert config.long_factor is not None
    rope = {
        "rope_type": "longrope",
        "rope_theta": config.rope_theta,
        "short_factor": list(config.short_factor),
        "long_factor": list(config.long_factor),
        "original_max_position_embeddings": config.original_max_position_embeddings,
        "factor": config.max_position_embeddings / config.original_max_position_embeddings,
    }
    library_config = Phi3Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        max_position_embeddings=config.max_position_embeddings,
        original_max_position_embeddings=config.original_max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters=rope,
        sliding_window=None,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.device("meta"):
        decoder = Phi3ForCausalLM(library_config)
    weights = {name: value for name, value in model.state_dict().items() if "vision_embed_tokens" not in name}
    decoder.load_state_dict(weights, strict=True, assign=True)
    rotary = decoder.model.rotary_emb
    decoder.model.rotary_emb = type(rotary)(library_config).to(model.device)
    decoder.train(False)
    return decoder
