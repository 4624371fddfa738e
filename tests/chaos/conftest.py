"""One cluster of several nodes for all of this folder, one small job, and what an undisturbed run of it answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Answers, Job, Machines, make_job


@pytest.fixture(scope="session")
def machines() -> Iterator[Machines]:
    machines = Machines()
    yield machines
    machines.shutdown()


@pytest.fixture
def job(machines: Machines, tmp_path: Path) -> Job:
    """A job of its own on the shared cluster."""
    return make_job(tmp_path, machines)


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return make_job(tmp_path_factory.mktemp("quiet")).expected()
