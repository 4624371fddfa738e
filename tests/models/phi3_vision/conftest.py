"""Fixtures for the Phi-3-Vision tests: golden models, measured differences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ray_job.models.phi3_vision import weights
from ray_job.models.phi3_vision.model import Phi3VisionModel

from .oracle import Compare


@pytest.fixture(scope="session", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest, tiny_folder: Path) -> Phi3VisionModel:
    """The golden tiny model in float32, with both attentions."""
    return weights.load(tiny_folder, dtype=torch.float32, attention=request.param)


@pytest.fixture(scope="session")
def sdpa_model(tiny_folder: Path) -> Phi3VisionModel:
    """The golden tiny model in float32, with the default attention."""
    return weights.load(tiny_folder, dtype=torch.float32)


@pytest.fixture
def close(request: pytest.FixtureRequest) -> Compare:
    """Asserts a largest absolute difference and keeps it; `pytest -v` prints the largest of each kind."""

    def compare(name: str, got: Tensor, want: Tensor, atol: float) -> None:
        assert got.shape == want.shape, name
        difference = float((got.float() - want.float()).abs().max())
        group = f"{request.node.originalname}: {name}"
        # What `record_property` does, but for its warning under --junitxml.
        request.node.user_properties.append((group, difference))
        assert difference <= atol, f"{name}: largest difference {difference}, allowed {atol}"

    return compare


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The largest measured differences, by test and name."""
    if terminalreporter.config.get_verbosity() < 0:
        return
    largest: dict[str, float] = {}
    for report in terminalreporter.getreports("passed"):
        for group, value in report.user_properties:
            if report.when == "call" and isinstance(value, float):
                largest[group] = max(value, largest.get(group, 0.0))
    if largest:
        terminalreporter.section("largest differences")
        for group in sorted(largest):
            terminalreporter.write_line(f"{largest[group]:.1e}  {group}")
