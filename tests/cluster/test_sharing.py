"""Jobs that share a process, a cluster and its CPUs with each other and with other work."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.data import DataContext

from ray_job import JobSpec, preview, run_job
from ray_job.cluster.capacity import StageCpus
from ray_job.cluster.warm_actor import warm_actor
from ray_job.errors import Interrupted, RayJobError, SpecError, TooManyRowErrors
from ray_job.output.verify import verify
from ray_job.storage.places import locate
from tests.conftest import small_ray

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
_MANY = 100_000  # rows that outlast the test


def job(folder: Path, num_rows: int, num_bad: int = 0, **limits: Any) -> JobSpec:
    """Text rows, the first of them without a prompt."""
    folder.mkdir(parents=True)
    questions = [None if row < num_bad else "what?" for row in range(num_rows)]
    pq.write_table(pa.table({"id": range(num_rows), "question": questions}), folder / "rows.parquet")
    return JobSpec.from_dict(
        {
            "input": {"path": str(folder / "rows.parquet"), "id_column": "id", "image_columns": []},
            "model": {"path": "builtin:noop"},
            "batching": {"block_rows": 8},
            "limits": limits,
            "output": {"path": str(folder / "out"), "part_rows": 16},
        }
    )


def run(spec: JobSpec) -> int:
    """Rows of a finished output, which is verified."""
    report = run_job(spec, stream=io.StringIO())
    found = verify(locate(spec.output.path))
    assert found.is_good, found.table()
    return report.totals.answered


def run_side_by_side(folder: Path, sizes: tuple[int, ...]) -> list[int | Exception]:
    """What jobs on threads of their own came to."""
    ends: dict[int, int | Exception] = {}

    def work(size: int) -> None:
        try:
            ends[size] = run(job(folder / str(size), size, no_progress_s=1000.0 + size))
        except Exception as error:
            ends[size] = error

    threads = [threading.Thread(target=work, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [ends[size] for size in sizes]


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


@pytest.mark.slow
def test_jobs_on_threads_share_a_ray_that_outlives_the_first_of_them(tmp_path: Path, no_ray: None) -> None:
    assert run_side_by_side(tmp_path, (32, 2000)) == [32, 2000]
    assert not ray.is_initialized(), "the last one stops what the first one started"


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process as it is before its first job."""
    ray.shutdown()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def succeed(folder: Path) -> None:
    assert run(job(folder, 64)) == 64


def fail(folder: Path) -> None:
    with pytest.raises(TooManyRowErrors):
        run(job(folder, _MANY, num_bad=40, max_errors=1))


def be_interrupted(folder: Path) -> None:
    spec = job(folder, 2000, grace_s=60.0)  # few enough to pass the stages, unanswered, within that time

    def interrupt() -> None:
        while not list(folder.glob("out/data/part-*")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Interrupted, match="rows are left"):
        run(spec)


ENDINGS: tuple[Callable[[Path], None], ...] = (succeed, fail, be_interrupted)


def settings() -> dict[str, Any]:
    """What a process has that a job might change."""
    loggers = logging.root.manager.loggerDict
    return {
        "environment": dict(os.environ),
        "context": {name: repr(value) for name, value in vars(DataContext.get_current()).items()},
        "loggers": {
            name: (logger.level, logger.propagate, list(logger.handlers))
            for name, logger in loggers.items()
            if isinstance(logger, logging.Logger)
        },
        "root logger": (logging.root.level, list(logging.root.handlers)),
        "warnings": list(warnings.filters),
        "handlers": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)},
        "hook": sys.excepthook,
        "stderr": os.fstat(2).st_ino,
        "threads": sorted(thread.name for thread in threading.enumerate() if thread.name not in _RAYS_OWN_THREADS),
    }


_RAYS_OWN_THREADS = ("ray_listen_error_messages", "ray_print_logs", "PythonGCThread")  # of the user's own connection


@pytest.fixture
def an_alarm() -> Iterator[None]:
    """A timer of the user's, which a job must neither stop nor be stopped by."""
    previous = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 1000)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


def leaves_as_it_was(work: Callable[[Path], None], folder: Path) -> None:
    warm = folder / "warm"
    assert run(job(warm, 16)) == 16  # imports what is imported once for all
    before = settings()
    work(folder / "work")
    after = settings()
    after["loggers"] = {name: after["loggers"][name] for name in before["loggers"]}  # others may have been made
    assert after == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 0


@pytest.mark.parametrize("work", ENDINGS)
def test_a_job_leaves_the_process_of_a_ray_user_as_it_was(
    work: Callable[[Path], None], local_ray: None, an_alarm: None, tmp_path: Path
) -> None:
    leaves_as_it_was(work, tmp_path)
    assert ray.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize("work", ENDINGS)
def test_a_job_with_a_ray_of_its_own_leaves_the_process_as_it_was(
    work: Callable[[Path], None], no_ray: None, an_alarm: None, tmp_path: Path
) -> None:
    leaves_as_it_was(work, tmp_path)
    assert not ray.is_initialized()


def run_in_task(spec: JobSpec) -> int | str:
    """As a Ray task does."""
    try:
        return run_job(spec, stream=io.StringIO()).totals.answered
    except RayJobError as error:
        return f"{type(error).__name__}: {error}"


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


@pytest.mark.slow
@pytest.mark.parametrize("cpus", [(1, 0.0), (2, 0.5), (2, 1.0)])
def test_one_long_split_is_read_beside_its_preparing_however_few_cpus_are_left(
    cpus: tuple[int, float], no_ray: None, tmp_path: Path
) -> None:
    num_cpus, cpus_per_actor = cpus
    spec = job(tmp_path / "job", 3000, no_progress_s=100.0)
    spec = spec.model_copy(update={"workers": spec.workers.model_copy(update={"cpus_per_actor": cpus_per_actor})})
    with small_ray(num_cpus=num_cpus):
        assert run(spec) == 3000
