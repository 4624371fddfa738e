"""A checkpoint of each family, written once, and pictures to show it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.models.auto.families import FAMILIES, write


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's checkpoint."""
    root = tmp_path_factory.mktemp("checkpoints")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            write(name, root / name)
        return root / name

    return folder


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Path:
    """Each family's checkpoint in turn."""
    return checkpoint(request.param)
