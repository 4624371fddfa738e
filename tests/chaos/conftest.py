"""One small job for all of this folder, and what an undisturbed run of it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .harness import make_job


@pytest.fixture(scope="session")
def expected(
    tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[Any, tuple[str, str | None, str | None]]:
    return make_job(tmp_path_factory.mktemp("quiet"), tiny_folder).expected()
