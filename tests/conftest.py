"""Fixtures for all tests: the golden tiny model, and samples for it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

# As a local Ray that a job starts: threads that spin for each other starve the processes beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

GOLDEN = Path(__file__).parent / "phi3_vision" / "golden"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden tiny model as a loadable folder: its tower's shape merged into config.json."""
    folder = tmp_path_factory.mktemp("tiny")
    for file in (GOLDEN / "tiny-mha").iterdir():
        shutil.copyfile(file, folder / file.name)
    config = json.loads((folder / "config.json").read_text())
    config["img_processor"]["vision_config"] = json.loads((folder / "oracle_clip_config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    return folder
