"""Jobs that share a process, a cluster and its CPUs with each other and with other work."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from ray.data import DataContext

from ray_job import JobSpec, preview, run_job
from ray_job.cluster.capacity import StageCpus
from ray_job.cluster.warm_actor import warm_actor
from ray_job.errors import RayJobError, SpecError

from .small_jobs import ENDINGS, job, leaves_as_it_was, run, run_side_by_side

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.mark.slow
def test_jobs_on_threads_share_the_ray_that_is_there(local_ray: None, tmp_path: Path) -> None:
    before = vars(DataContext.get_current()).copy()
    assert run_side_by_side(tmp_path, (96, 400)) == [96, 400]
    assert ray.is_initialized()
    assert vars(DataContext.get_current()) == before, "what one job needs is not the other's, nor the caller's"


@pytest.mark.slow
def test_previews_are_answered_before_beside_and_after_a_job(local_ray: None, tmp_path: Path) -> None:
    spec = job(tmp_path / "job", 2000)
    ends: list[int] = []
    thread = threading.Thread(target=lambda: ends.append(run(spec)))
    try:
        assert preview(spec, 4).table.num_rows == 4
        thread.start()
        while thread.is_alive():
            assert preview(spec, 4).table.num_rows == 4
        assert preview(spec, 4).table.num_rows == 4
    finally:
        thread.join()
        warm_actor().release()
    assert ends == [2000]


def test_the_ray_that_is_used_already_comes_before_the_one_that_ray_address_names(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://nowhere:10001")
    assert run(job(tmp_path / "job", 16)) == 16


@pytest.mark.parametrize("work", [ENDINGS[0], *(pytest.param(each, marks=pytest.mark.slow) for each in ENDINGS[1:])])
def test_a_job_leaves_the_process_of_a_ray_user_as_it_was(
    work: Callable[[Path], None], local_ray: None, an_alarm: None, tmp_path: Path
) -> None:
    leaves_as_it_was(work, tmp_path)
    assert ray.is_initialized()


def run_in_task(spec: JobSpec) -> int | str:
    """As a Ray task does."""
    try:
        return run_job(spec, stream=io.StringIO()).totals.answered
    except RayJobError as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.slow
def test_a_task_that_holds_every_cpu_is_refused_and_one_that_leaves_some_is_served(
    local_ray: None, tmp_path: Path
) -> None:
    on_all = ray.remote(num_cpus=2)(run_in_task)
    refused = ray.get(on_all.remote(job(tmp_path / "all", 64)))
    assert refused.startswith(f"{SpecError.__name__}: run_job: 1 problem")
    assert "holds 2 of the cluster's 2 CPUs, which the job needs" in refused
    assert not (tmp_path / "all" / "out" / "_manifest.json").exists(), "before anything is written"
    assert ray.get(ray.remote(num_cpus=1)(run_in_task).remote(job(tmp_path / "one", 2000))) == 2000
    assert ray.get(ray.remote(num_cpus=0)(run_in_task).remote(job(tmp_path / "none", 64))) == 64


class Holder:
    """An actor that only keeps its CPUs."""

    def is_there(self) -> bool:
        return True


@pytest.mark.slow
def test_what_other_work_holds_is_said_and_waited_for(
    local_ray: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    holder = ray.remote(num_cpus=2)(Holder).remote()
    assert ray.get(holder.is_there.remote())
    ends: list[int] = []
    thread = threading.Thread(target=lambda: ends.append(run(job(tmp_path / "job", 64))))
    thread.start()
    while not caplog.messages:
        time.sleep(0.1)
        assert thread.is_alive()
    assert caplog.messages == ["waiting for 1 of the cluster's 2 CPUs: other work holds 2"]
    ray.kill(holder)
    thread.join()
    assert ends == [64]


@pytest.mark.parametrize("num_cpus", [0.1, 0.5, 1.0, 1.5, 1.99])
def test_one_task_of_each_stage_fits_where_there_are_few_cpus(num_cpus: float) -> None:
    stages = StageCpus.fit(num_cpus)
    assert stages.read + stages.prepare + stages.write < num_cpus
    assert num_cpus < 2 * stages.read <= 2.0
    assert StageCpus.fit(2.0) == StageCpus(1.0, 0.8, 0.1)
