"""A row's generation parameters as vLLM's. Knows names alone, no vLLM."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ray_job.spec import GenerationParams


def sampling_arguments(params: GenerationParams, stop_ids: Collection[int]) -> dict[str, Any]:
    """Arguments of `vllm.SamplingParams` under which vLLM chooses tokens as `params` says.

    Which tokens end an answer is told here, what strings do is not: those are found in `engine.py`. Sampled answers
    are a function of the row and its seed, as everywhere, but drawn by vLLM's generator, so that other engines sample
    other ones. vLLM takes temperatures below 0.01 for 0.01, and refuses those above 2.

    Args:
        params: the row's.
        stop_ids: the model's own.
    """
    common = {
        "max_tokens": params.max_new_tokens,
        "repetition_penalty": params.repetition_penalty,
        "stop_token_ids": sorted({*stop_ids, *params.stop_token_ids}),
        "ignore_eos": True,  # they are among the stop ids, and nothing else is
        "detokenize": False,
    }
    if params.is_greedy:
        return {**common, "temperature": 0.0}
    sampled = {"temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k, "seed": params.seed}
    return {**common, **sampled}
