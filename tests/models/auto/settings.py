"""Samples through the continuous engine, in settings that pack their tokens in as many ways as there are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from ray_job.engine.continuous import ContinuousEngine
from ray_job.engine.interface import Vocabulary
from ray_job.engine.packed_model import PackedModel
from ray_job.engine.varlen import plain
from ray_job.rows import Result, Sample

SETTINGS: dict[str, dict[str, Any]] = {
    "one by one": {"max_slots": 1, "prefix_sharing": False, "vision_cache_bytes": 0},
    "together": {"max_slots": 32},
    "odd steps": {"max_slots": 4, "step_tokens": 33, "min_shared_tokens": 8},
    "ragged kernel": {"max_slots": 8, "step_tokens": 64, "min_shared_tokens": 16, "kernel": plain},
    "shuffled, steps of 7": {"max_slots": 5, "step_tokens": 7, "min_shared_tokens": 1, "max_crops": 1},
}
VOCABULARY = Vocabulary(256, frozenset(), lambda ids: " ".join(map(str, ids)))


def answers(model: PackedModel, samples: Sequence[Sample], **options: Any) -> dict[int, list[int]]:
    """Token ids by key of the sample. Raises RuntimeError for a row's error."""
    results = run(model, samples, **options)
    for result in results.values():
        if result.error is not None:
            raise RuntimeError(f"row {result.key}: {result.error.message}")
    return {key: list(result.token_ids) for key, result in results.items()}


def run(
    model: PackedModel, samples: Sequence[Sample], vocabulary: Vocabulary = VOCABULARY, **options: Any
) -> dict[int, Result]:
    """Results by key; samples arrive a few at a time, in a shuffled order, while others are answered."""
    engine = ContinuousEngine(model, vocabulary, max_tokens=4000, answer_duplicates=False, **options)
    rng = random.Random(1)
    waiting = rng.sample(samples, len(samples))
    results: dict[int, Result] = {}
    while waiting or engine.has_work:
        for _ in range(rng.randint(0, 4)):
            if waiting:
                engine.add(waiting.pop())
        results |= {result.key: result for result in engine.step()}
    return results
