"""What another engine is handed, and what is said where it does not run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ray_job.bench.engine import VOCABULARY
from ray_job.bench.peers.peer import Peer, PeerError
from ray_job.bench.workloads import MAKERS, Workload
from ray_job.engine.continuous import ContinuousEngine
from ray_job.engine.interface import run
from ray_job.models.phi3_vision import model as phi3_vision
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig, VisionConfig
from ray_job.models.phi3_vision.crops import pixels_to_crops
from ray_job.models.phi3_vision.image_processing import num_image_tokens
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.packed import PackedPhi3Vision
from ray_job.models.phi3_vision.processor import PIXELS
from ray_job.models.phi3_vision.weights import init_weights, save

OPENVINO = "RAY_JOB_OPENVINO_PYTHON"


def _peer(folder: Path, python: Path) -> Peer:
    return Peer("vllm", python, folder, "float32", num_crops=1, threads=1, folder=folder / "work")


def _small_model() -> Phi3VisionModel:
    """Small but for the tower's width, which the peers require."""
    config = Phi3VisionConfig(
        vocab_size=1000,
        hidden_size=192,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=131072,
        short_factor=(1.1,) * 48,
        long_factor=(4.0,) * 48,
        initializer_range=0.1,
        vision=VisionConfig(intermediate_size=256, num_hidden_layers=2),
    )
    model = Phi3VisionModel(config).eval()
    with torch.no_grad():
        init_weights(model, seed=0)
        for separator in (model.model.vision_embed_tokens.glb_GN, model.model.vision_embed_tokens.sub_GN):
            separator.normal_(generator=torch.Generator().manual_seed(1))
    return model


def _with_openvinos_global_view(pixels_HW3: Tensor, *arguments: Any) -> Tensor:
    """Crops whose global view takes every k-th pixel of the picture that OpenVINO is handed, as its own does."""
    rows, cols = pixels_HW3.shape[0] // 336, pixels_HW3.shape[1] // 336
    crops_N3CC = pixels_to_crops(pixels_HW3, *arguments)[1:]
    handed_over_3HW = (
        crops_N3CC.reshape(cols, rows, 3, 336, 336).permute(2, 0, 3, 1, 4).reshape(3, cols * 336, rows * 336)
    )
    return torch.cat([handed_over_3HW[None, :, ::cols, ::rows], crops_N3CC])


def test_a_peer_is_asked_what_our_engine_is_asked(tmp_path: Path) -> None:
    samples = MAKERS["long"](Workload(0, 1000, num_crops=1), 5)
    with pytest.raises(PeerError):
        _peer(tmp_path, tmp_path / "no-python").run(samples, samples[:1])
    request = json.loads((tmp_path / "work" / "request.json").read_text())
    assert request["threads"] == 1
    assert len(request["warm_up"]) == 1
    assert request["max_model_len"] > 4096
    for row, sample in zip(request["rows"], samples, strict=True):
        pictures = [np.load(tmp_path / "work" / "pictures" / f"{name}.npy") for name in row["pictures"]]
        tokens = [num_image_tokens(len(pixels) // 336, pixels.shape[1] // 336) for pixels in pictures]
        ids = [each for token in row["input_ids"] for each in [token] * (1 if token >= 0 else tokens[-token - 1])]
        assert ids == sample.input_ids
        assert row["max_new_tokens"] == sample.params.max_new_tokens
        for pixels, picture in zip(pictures, sample.pictures, strict=True):
            assert np.array_equal(pixels, picture.arrays[PIXELS])


def test_what_a_peer_died_of_is_told(tmp_path: Path) -> None:
    samples = MAKERS["uniform"](Workload(0, 1000, num_crops=1), 1)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback\necho \"ModuleNotFoundError: No module named 'vllm'\" >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(PeerError, match=r"^ModuleNotFoundError: No module named 'vllm'$"):
        _peer(tmp_path, python).run(samples, samples)
    with pytest.raises(PeerError, match="no-python"):
        _peer(tmp_path, tmp_path / "no-python").run(samples, samples)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(OPENVINO not in os.environ, reason=f"{OPENVINO} names the Python of an environment that has it")
def test_openvino_answers_with_the_engines_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _small_model()
    save(model, tmp_path / "model")
    python = Path(os.environ[OPENVINO])
    peer = Peer("openvino", python, tmp_path / "model", "float32", num_crops=4, threads=1, folder=tmp_path / "work")
    samples = MAKERS["long-tailed"](Workload(0, 1000, num_crops=4), 8)
    result = peer.run(samples, MAKERS["long-tailed"](Workload(1, 1000, num_crops=4), 2))
    monkeypatch.setattr(phi3_vision, "pixels_to_crops", _with_openvinos_global_view)
    ours = run(ContinuousEngine(PackedPhi3Vision(model), VOCABULARY), samples)
    assert result.answers == {each.key: list(each.token_ids) for each in ours}
