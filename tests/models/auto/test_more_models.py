"""Models without their processors, and the library's text decoders, in the continuous engine: as `generate` has it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from ray_job.models.auto.gate import fit
from ray_job.models.auto.normalization import Normalization
from ray_job.models.auto.packed import PackedAuto
from ray_job.rows import Sample
from tests.models.auto import decoders, models_alone
from tests.models.auto.models_alone import MODELS
from tests.models.auto.settings import SETTINGS, answers
from tests.models.auto.test_gate import HALF, rows

EVERY_TIME = {"gemma4", "paligemma2"}
DECODERS_EVERY_TIME = {"gemma2", "mixtral", "granite"}


@pytest.mark.parametrize(
    "name", [name if name in EVERY_TIME else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_models_of_families_as_the_library_generates_them(name: str) -> None:
    model = models_alone.make(name)
    samples = models_alone.rows(name, 6)
    packed = fit(model, Normalization(), samples[:2])
    check(packed, model, samples)


@pytest.mark.parametrize(
    "name",
    [name if name in DECODERS_EVERY_TIME else pytest.param(name, marks=pytest.mark.slow) for name in decoders.FIT],
)
def test_text_decoders_as_the_library_generates_them(name: str) -> None:
    model = decoders.over(decoders.config(name))
    model.generation_config.eos_token_id = None
    samples = rows()
    check(fit(model, HALF, samples), model, samples)


def check(packed: PackedAuto, model: Any, samples: Sequence[Sample]) -> None:
    with packed.released():
        expected = {sample.key: generated(packed, model, sample) for sample in samples}
    assert len({tuple(ids[:3]) for ids in expected.values()}) == len(samples)
    for setting, options in SETTINGS.items():
        assert answers(packed, samples, **options) == expected, setting


@torch.inference_mode()
def generated(packed: PackedAuto, model: Any, sample: Sample) -> list[int]:
    """The library's answer to one row: it is told the same ids and arrays."""
    ids_L = torch.tensor(sample.input_ids)
    types_1L = torch.from_numpy(packed.token_types(ids_L.numpy(), len(ids_L)))[None]
    ids_1L = torch.where(ids_L < 0, model.config.image_token_id, ids_L)[None]
    known = inspect.signature(model.forward).parameters
    names = [name for name in ("token_type_ids", "mm_token_type_ids") if name in known]
    output = model.generate(
        input_ids=ids_1L,
        attention_mask=torch.ones_like(ids_1L),
        **dict.fromkeys(names, types_1L),
        **packed.image_arrays(sample.pictures),
        do_sample=False,
        max_new_tokens=sample.params.max_new_tokens,
        pad_token_id=decoders.SIZES["pad_token_id"],
    )
    tokens: list[int] = output[0, len(ids_L) :].tolist()
    return tokens
