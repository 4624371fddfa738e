"""A model so small that hundreds of workloads run in seconds, and random rows for it."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from ray_job.engine.interface import Vocabulary, run
from ray_job.engine.static import StaticEngine
from ray_job.engine.varlen import MIN_CAPABILITY
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig, VisionConfig
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.padded import PaddedPhi3Vision
from ray_job.models.phi3_vision.processor import PIXELS
from ray_job.models.phi3_vision.weights import init_weights
from ray_job.rows import Picture, Result, Sample
from ray_job.spec import GenerationParams

VOCAB = 61
CROP = 28
STOP_ID = 3
VOCABULARY = Vocabulary(
    pad_id=0, stop_ids=frozenset({STOP_ID}), detokenize=lambda ids: "".join(chr(97 + i % 26) for i in ids)
)
needs_flash = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < MIN_CAPABILITY,
    reason="needs a CUDA device with flash attention",
)


@functools.cache
def tiny_model(switch: int = 4096, kv_heads: int = 4, window: int | None = None) -> Phi3VisionModel:
    """Random, with RoPE factors that switch after `switch` tokens; weights large enough for varied answers."""
    config = Phi3VisionConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        original_max_position_embeddings=switch,
        short_factor=(1.0, 1.1, 1.5, 2.0),
        long_factor=(1.0, 1.6, 4.0, 9.0),
        sliding_window=window,
        initializer_range=0.3,
        vision=VisionConfig(
            image_size=CROP,
            patch_size=7,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
        ),
    )
    model = Phi3VisionModel(config).eval()
    with torch.no_grad():
        init_weights(model, seed=1)
    return model


def picture(number: int, rows: int = 1, cols: int = 1) -> Picture:
    """A random picture of rows × cols crops; equal numbers are equal pictures."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (CROP * rows, CROP * cols, 3), dtype=np.uint8)
    return Picture(f"{number}/{rows}/{cols}".encode(), {PIXELS: pixels})


def num_tokens(shown: Picture) -> int:
    """Placeholders of a picture for the tiny model."""
    rows, cols = shown.arrays[PIXELS].shape[0] // CROP, shown.arrays[PIXELS].shape[1] // CROP
    return (rows * cols + 1) * 4 + 1 + (rows + 1) * 2


def prompt(text: Sequence[int], pictures: Sequence[Picture], system: Sequence[int] = ()) -> list[int]:
    """Ids: system text, each picture with a token after it, then the text."""
    ids = [1, *system]
    for number, shown in enumerate(pictures, start=1):
        ids += [-number] * num_tokens(shown) + [1]
    return ids + list(text)


def samples(seed: int, count: int) -> list[Sample]:
    """Rows of mixed kinds: text only, one picture, several; shared pictures, shared system prompts, duplicates."""
    rng = random.Random(seed)
    systems = [[], [rng.randrange(4, VOCAB) for _ in range(rng.randint(3, 20))]]
    gallery = [picture(rng.randrange(50), *rng.choice([(1, 1), (1, 2), (2, 2)])) for _ in range(3)]
    found: list[Sample] = []
    for key in range(count):
        if found and rng.random() < 0.2:
            again = rng.choice(found)
            found.append(Sample(key, again.input_ids, again.pictures, again.params))
            continue
        shown = [rng.choice(gallery) for _ in range(rng.choice([0, 0, 1, 1, 1, 2]))]
        text = [rng.randrange(4, VOCAB) for _ in range(rng.randint(1, 12))]
        params = GenerationParams(
            max_new_tokens=rng.choice([1, 2, 3, 5, 8, 20]),
            temperature=rng.choice([0.0, 0.0, 0.0, 1.0]),
            top_p=rng.choice([1.0, 0.9]),
            top_k=rng.choice([0, 7]),
            seed=rng.randrange(100),
            repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
            stop=rng.choice([(), (), ("q",), ("ab", "z")]),
            stop_token_ids=rng.choice([(), (rng.randrange(VOCAB),)]),
        )
        found.append(Sample(key, prompt(text, shown, rng.choice(systems)), shown, params))
    return found


def essence(result: Result) -> tuple[object, ...]:
    """What must not depend on neighbours."""
    code = result.error.code if result.error else None
    return result.token_ids, result.text, result.finish_reason, result.completion_tokens, result.prompt_tokens, code


def alone(
    model: Phi3VisionModel, rows: Sequence[Sample], vocabulary: Vocabulary = VOCABULARY
) -> dict[int, tuple[object, ...]]:
    """The reference: every row by itself in the static engine."""
    engine = StaticEngine(PaddedPhi3Vision(model), vocabulary, max_batch_rows=1)
    return {result.key: essence(result) for result in run(engine, rows)}
