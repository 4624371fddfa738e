"""Fixtures for all tests: the golden tiny model, and samples for it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other are many times slower than one on a machine with other work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One Ray for a module; every job in it finds it running and leaves it so."""
    with small_ray():
        yield


@contextmanager
def small_ray(**options: Any) -> Iterator[None]:
    """A Ray of this process's own on two cores; `options` are `ray.init`'s."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    memory = {"object_store_memory": 200 * 2**20}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, **memory | options)
    try:
        yield
    finally:
        ray.shutdown()
