"""Static batches of library models without their processors, among them those that the continuous engine refuses.

Each row's answer is the one that the library's `generate` gives to it alone, with its pictures as pixels.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel

from ray_job.models.auto.gate import fit
from ray_job.models.auto.normalization import Normalization
from ray_job.models.auto.padded import PaddedAuto
from ray_job.models.auto.padded_gate import why_alone, why_not_padded
from ray_job.models.auto.unfit import Unfit
from ray_job.rows import Sample
from tests.models.auto import models_alone
from tests.models.auto.decoders import IMAGE_ID, SIZES
from tests.models.auto.models_alone import MODELS, Alone
from tests.models.auto.test_padded import answers

NUM_ROWS = 7
EVERY_TIME = {"paligemma2", "gemma4", "idefics2"}


def _qwen3_5() -> PreTrainedModel:
    """Linear attention in two of three layers."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
    linear = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    }
    config = transformers.Qwen3_5Config(
        text_config={**SIZES, "head_dim": 16, "rope_parameters": rope, **linear},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 16,
            "out_hidden_size": 64,
            "num_position_embeddings": 16,
        },
        image_token_id=IMAGE_ID,
        video_token_id=IMAGE_ID + 1,
    )
    return transformers.Qwen3_5ForConditionalGeneration(config)


def _llava(text: Any) -> PreTrainedModel:
    """LLaVA over another decoder."""
    config = transformers.LlavaConfig(
        vision_config=transformers.SiglipVisionConfig(**models_alone.VISION, vision_use_head=False),
        text_config=text.to_dict(),
        image_token_index=IMAGE_ID,
        vision_feature_select_strategy="full",
    )
    return transformers.LlavaForConditionalGeneration(config)


def _llama4() -> PreTrainedModel:
    """Attention within chunks that rows exceed, a layer without positions, and experts."""
    sizes = {**SIZES, "head_dim": 16, "num_local_experts": 4, "intermediate_size_mlp": 96}
    return _llava(transformers.Llama4TextConfig(**sizes, attention_chunk_size=16, no_rope_layers=[1, 1, 0]))


def _lfm2() -> PreTrainedModel:
    """Short convolutions in two of three layers."""
    return _llava(transformers.Lfm2Config(**SIZES, layer_types=["conv", "full_attention", "conv"]))


def _gpt_oss() -> PreTrainedModel:
    """Sinks, windows and experts."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 12}
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    return _llava(transformers.GptOssConfig(**SIZES, **experts, layer_types=layers))


REFUSED_BY_CONTINUOUS = {
    "qwen3_5": Alone(_qwen3_5, models_alone._patches(1536)),
    "llava_over_llama4": Alone(_llama4, models_alone._square(16)),
    "llava_over_lfm2": Alone(_lfm2, models_alone._square(16)),
    "llava_over_gpt_oss": Alone(_gpt_oss, models_alone._square(16)),
}


@pytest.fixture(autouse=True)
def _with_more_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, model in REFUSED_BY_CONTINUOUS.items():
        monkeypatch.setitem(MODELS, name, model)


@torch.inference_mode()
def generated(model: PreTrainedModel, sample: Sample) -> list[int]:
    """The library's own answer to the row alone."""
    ids_1L = torch.tensor([sample.input_ids])
    is_picture_1L = ids_1L < 0
    known = inspect.signature(model.forward).parameters
    types = is_picture_1L.long() if model.config.model_type != "paligemma" else torch.zeros_like(ids_1L)
    inputs: dict[str, Any] = {name: types for name in ("token_type_ids", "mm_token_type_ids") if name in known}
    for name in sample.pictures[0].arrays:
        inputs[name] = torch.from_numpy(np.concatenate([picture.arrays[name] for picture in sample.pictures]))
    output = model.generate(
        input_ids=ids_1L.masked_fill(is_picture_1L, IMAGE_ID),
        attention_mask=torch.ones_like(ids_1L),
        **inputs,
        do_sample=False,
        max_new_tokens=sample.params.max_new_tokens,
    )
    tokens: list[int] = output[0, ids_1L.shape[1] :].tolist()
    return tokens


@pytest.mark.parametrize(
    "name",
    [
        *REFUSED_BY_CONTINUOUS,
        *(name if name in EVERY_TIME else pytest.param(name, marks=pytest.mark.slow) for name in MODELS),
    ],
)
def test_batches_and_single_rows_answer_as_the_library_does(name: str) -> None:
    model, samples = models_alone.make(name), models_alone.rows(name, NUM_ROWS)
    expected = {sample.key: generated(model, sample) for sample in samples}
    assert len({tuple(tokens) for tokens in expected.values()}) > 4
    assert why_not_padded(model) is None
    padded = PaddedAuto(model, Normalization(), max_len=2048)
    assert why_alone(model, padded) is None
    assert answers(padded, samples, max_batch_rows=1) == expected
    assert answers(padded, samples, max_batch_rows=NUM_ROWS) == expected
    assert answers(padded, samples[::-1], max_batch_rows=3) == expected


@pytest.mark.parametrize("name", REFUSED_BY_CONTINUOUS)
def test_they_do_not_fit_the_continuous_engine(name: str) -> None:
    with pytest.raises(Unfit):
        fit(models_alone.make(name), Normalization(), models_alone.rows(name, 2))
