"""Jobs whose process uses no Ray: the job starts one, and leaves the process as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from tests.conftest import small_ray

from .small_jobs import ENDINGS, job, leaves_as_it_was, run, run_side_by_side

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process as it is before its first job."""
    ray.shutdown()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def test_jobs_on_threads_share_a_ray_that_outlives_the_first_of_them(tmp_path: Path, no_ray: None) -> None:
    assert run_side_by_side(tmp_path, (32, 2000)) == [32, 2000]
    assert not ray.is_initialized(), "the last one stops what the first one started"


@pytest.mark.parametrize("work", ENDINGS)
def test_a_job_with_a_ray_of_its_own_leaves_the_process_as_it_was(
    work: Callable[[Path], None], no_ray: None, an_alarm: None, tmp_path: Path
) -> None:
    leaves_as_it_was(work, tmp_path)
    assert not ray.is_initialized()


@pytest.mark.parametrize("cpus", [(1, 0.0), (2, 0.5), (2, 1.0)])
def test_one_long_split_is_read_beside_its_preparing_however_few_cpus_are_left(
    cpus: tuple[int, float], no_ray: None, tmp_path: Path
) -> None:
    num_cpus, cpus_per_actor = cpus
    spec = job(tmp_path / "job", 3000, no_progress_s=100.0)
    spec = spec.model_copy(update={"workers": spec.workers.model_copy(update={"cpus_per_actor": cpus_per_actor})})
    with small_ray(num_cpus=num_cpus):
        assert run(spec) == 3000
