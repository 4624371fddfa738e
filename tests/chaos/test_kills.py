"""Kill drivers, actors and workers at seeded moments; run again; nothing is lost, nothing doubled.

`RAY_JOB_CHAOS=50` makes it some fifty driver kills, and about as many of actors and workers, instead of two and two.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from .harness import NUM_ROWS, Driver, Job, call, make_job

NUM_KILLS = int(os.environ.get("RAY_JOB_CHAOS", "0")) or 2
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300 + 100 * NUM_KILLS)]

Answers = dict[Any, tuple[str, str | None, str | None]]


def run_killed(job: Job, rng: random.Random) -> int:
    """Starts or goes on with a job, kills its driver after some more parts, and says how many rows were skipped."""
    committed = job.num_committed()
    driver = job.start("--mode", "resume")
    more = rng.randint(1, 60)
    driver.wait_until(lambda: job.num_committed() >= committed + more)
    time.sleep(rng.uniform(0, 0.3))
    driver.send(signal.SIGKILL)
    driver.wait()
    manifest = job.manifest()
    # Not equal: workers of the driver killed before may commit what they hold for a moment after it.
    assert manifest["already_done"] >= committed, "a committed row is not done again"
    return committed


def kill_workers(driver: Driver, job: Job, rng: random.Random, num_kills: int) -> int:
    """Kills an actor or a task's process now and then, while the driver lives."""
    num_killed = 0
    while driver.is_alive and num_killed < num_kills:
        before = job.num_committed()
        driver.wait_until(lambda before=before: job.num_committed() > before)  # type: ignore[misc]
        # Not the agents beside them: a node does not outlive those, and this one is all there is.
        victims = driver.workers("ray::MapWorker" if num_killed % 2 == 0 else r"ray::(Map|Read|IDLE)")
        if victims:
            os.kill(rng.choice(victims), signal.SIGKILL)
            num_killed += 1
    return num_killed


def test_killed_drivers_and_workers_lose_and_double_nothing(
    tiny_folder: Path, tmp_path: Path, expected: Answers
) -> None:
    job = make_job(tmp_path, tiny_folder)
    rng = random.Random(11)
    num_driver_kills = num_worker_kills = 0
    for round_ in range(-(-NUM_KILLS // 3)):
        job.spec["output"]["path"] = str(tmp_path / f"out-{round_}")
        for _ in range(min(3, NUM_KILLS)):
            run_killed(job, rng)
            num_driver_kills += 1
        code, text = call("status", str(job.out))
        assert (code, "not running; finish it with --mode resume" in text) == (0, True), text
        assert call("verify", str(job.out))[0] == 4
        driver = job.start("--mode", "resume")
        num_worker_kills += kill_workers(driver, job, rng, num_kills=min(3, NUM_KILLS))
        code, text = driver.wait()
        assert code == 0, text
        assert job.answers() == expected
        code, text = call("verify", str(job.out))
        assert code == 0, text
    print(f"{num_driver_kills} drivers and {num_worker_kills} actors or workers killed")
    assert num_worker_kills > 0


def test_a_finished_run_is_left_alone_and_a_damaged_one_is_mended(
    tiny_folder: Path, tmp_path: Path, expected: Answers
) -> None:
    job = make_job(tmp_path, tiny_folder)
    assert job.run()[0] == 0
    names = {path: path.stat().st_mtime_ns for path in job.out.rglob("*") if path.is_file()}
    code, text = job.run("--mode", "resume")
    assert code == 0, text
    assert "already done" in text
    assert {path: path.stat().st_mtime_ns for path in job.out.rglob("*") if path.is_file()} == names

    part = sorted(job.out.glob("data/part-*"))[3]
    num_damaged = pq.read_metadata(part).num_rows
    part.write_bytes(part.read_bytes()[:-200])
    (job.out / "_SUCCESS").unlink()
    code, text = call("verify", str(job.out))
    assert (code, "damaged" in text, "_SUCCESS is missing" in text) == (4, True, True), text
    code, text = job.run("--mode", "resume")
    assert code == 0, text
    assert job.manifest()["already_done"] == NUM_ROWS - num_damaged
    assert job.answers() == expected
    assert call("verify", str(job.out))[0] == 0

    (job.out / "_manifest.json").write_text('{"state": "comp')
    for code, text in (job.run("--mode", "resume"), call("verify", str(job.out)), call("status", str(job.out))):
        assert (code, "_manifest.json is damaged" in text) == (2, True), text
