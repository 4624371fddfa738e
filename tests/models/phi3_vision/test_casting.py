"""A model that is kept in bfloat16 and computes in float32: the float32 model with the same, rounded weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from ray_job.engine.continuous import ContinuousEngine
from ray_job.engine.interface import run
from ray_job.models.casting import cast_layerwise, computes_in
from ray_job.models.loading import load_model
from ray_job.models.phi3_vision import weights
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.packed import PackedPhi3Vision
from ray_job.spec import JobSpec
from tests.engine.tiny import VOCABULARY, alone, essence, samples, tiny_model

from .oracle import golden_row, logits_of

AVX2: Mapping[str, bool] = {"avx2": True, "avx512_bf16": False, "avx512_fp16": False, "amx_bf16": False}
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["img_wide", "text_long"])
def test_equals_float32_with_rounded_weights(dtype: torch.dtype, name: str, tiny_folder: Path) -> None:
    rounded = weights.load(tiny_folder, dtype=dtype).float()
    kept = weights.load(tiny_folder, dtype=dtype)
    cast_layerwise(kept, torch.float32)
    assert kept.dtype == torch.float32
    assert torch.equal(logits_of(kept, golden_row(kept, name)), logits_of(rounded, golden_row(rounded, name)))


def test_matrices_stay_as_they_are(tiny_folder: Path) -> None:
    """Half the memory is the point: only vectors and the patches' convolution are float32."""
    kept = weights.load(tiny_folder, dtype=torch.bfloat16)
    before = {name: tensor.data_ptr() for name, tensor in kept.state_dict().items()}
    cast_layerwise(kept, torch.float32)
    for name, tensor in kept.state_dict().items():
        if tensor.ndim == 2:
            assert (tensor.dtype, tensor.data_ptr()) == (torch.bfloat16, before[name]), name
        else:
            assert tensor.dtype == torch.float32, name


@pytest.mark.parametrize("packs", [True, False])
def test_continuous_engine_answers_as_each_row_alone(packs: bool) -> None:
    """As in float32: no row's tokens depend on its company."""
    config = tiny_model().config
    with torch.device("meta"):
        kept = Phi3VisionModel(config)
    narrow = {name: tensor.to(torch.bfloat16) for name, tensor in tiny_model().state_dict().items()}
    kept.load_state_dict(narrow, assign=True)
    cast_layerwise(kept.eval(), torch.float32)
    rows = samples(7, 60)
    expected = alone(kept, rows)
    engine = ContinuousEngine(PackedPhi3Vision(kept, None if packs else 0), VOCABULARY, max_slots=5)
    assert {result.key: essence(result) for result in run(engine, rows)} == expected


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        (AVX2, set()),
        ({**AVX2, "avx512_bf16": True}, {torch.bfloat16}),
        ({**AVX2, "amx_bf16": True, "avx512_fp16": True}, {torch.bfloat16, torch.float16}),
        ({"neon": True, "fp16_arith": True, "bf16": True}, {torch.bfloat16, torch.float16}),
        ({}, {torch.bfloat16, torch.float16}),  # torch cannot tell: as it says
    ],
)
def test_which_dtypes_a_processor_computes_in(
    capabilities: Mapping[str, bool], native: set[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert {dtype for dtype in (torch.bfloat16, torch.float16) if computes_in(dtype, CPU)} == native
    assert computes_in(torch.float32, CPU)
    assert computes_in(torch.bfloat16, torch.device("cuda"))


@pytest.mark.parametrize(("has_bf16", "computed"), [(False, torch.float32), (True, torch.bfloat16)])
def test_jobs_compute_in_what_the_processor_has(
    has_bf16: bool, computed: torch.dtype, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {**AVX2, "amx_bf16": has_bf16}, raising=False)
    spec = {
        "input": {"path": "rows.parquet"},
        "prompt": {"template": "What?"},
        "model": {"path": str(tiny_folder), "dtype": "bfloat16", "device": "cpu"},
        "output": {"path": "answers"},
    }
    model = load_model(JobSpec.model_validate(spec))
    assert model.dtype == computed
    assert {layer.weight.dtype for layer in model.modules() if isinstance(layer, nn.Linear)} == {torch.bfloat16}
