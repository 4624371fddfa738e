"""What another engine is handed, and what is said where it does not run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ray_job.bench.peers import Peer, PeerError
from ray_job.bench.workloads import MAKERS, Workload
from ray_job.models.phi3_vision.image_processing import num_image_tokens


def _peer(folder: Path, python: Path) -> Peer:
    return Peer("vllm", python, folder, "float32", num_crops=1, threads=1, folder=folder / "work")


def test_a_peer_is_asked_what_our_engine_is_asked(tmp_path: Path) -> None:
    samples = MAKERS["long"](Workload(0, 1000, num_crops=1), 5)
    with pytest.raises(PeerError):
        _peer(tmp_path, tmp_path / "no-python").run(samples, samples[:1])
    request = json.loads((tmp_path / "work" / "request.json").read_text())
    assert len(request["warm_up"]) == 1
    assert request["max_model_len"] > 4096
    for row, sample in zip(request["rows"], samples, strict=True):
        pictures = [np.load(tmp_path / "work" / "pictures" / f"{name}.npy") for name in row["pictures"]]
        tokens = [num_image_tokens(len(pixels) // 336, pixels.shape[1] // 336) for pixels in pictures]
        ids = [each for token in row["input_ids"] for each in [token] * (1 if token >= 0 else tokens[-token - 1])]
        assert ids == sample.input_ids
        assert row["max_new_tokens"] == sample.params.max_new_tokens
        for pixels, picture in zip(pictures, sample.pictures, strict=True):
            assert np.array_equal(pixels, picture.pixels_HWC)


def test_what_a_peer_died_of_is_told(tmp_path: Path) -> None:
    samples = MAKERS["uniform"](Workload(0, 1000, num_crops=1), 1)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback\necho \"ModuleNotFoundError: No module named 'vllm'\" >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(PeerError, match=r"^ModuleNotFoundError: No module named 'vllm'$"):
        _peer(tmp_path, python).run(samples, samples)
    with pytest.raises(PeerError, match="no-python"):
        _peer(tmp_path, tmp_path / "no-python").run(samples, samples)
