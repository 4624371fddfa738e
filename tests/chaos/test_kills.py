"""Kill drivers, actors, workers and nodes at seeded moments; run again; nothing is lost, nothing doubled.

`RAY_JOB_CHAOS=50` makes it fifty driver kills and fifty of actors, workers and nodes; `RAY_JOB_CHAOS_SEED` changes the
moments.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from .harness import BLOCK_ROWS, BLOCKS_PER_ACTOR, NUM_ROWS, Answers, Driver, Job, Machines, call

NUM_KILLS = int(os.environ.get("RAY_JOB_CHAOS", "0"))
SEED = int(os.environ.get("RAY_JOB_CHAOS_SEED", "11"))
pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(300 + 60 * NUM_KILLS)]


@dataclass
class Disturbed:
    """A job that is harmed, and the rows that may have to be computed again for it."""

    job: Job
    machines: Machines
    rng: random.Random
    num_in_flight: int = 0

    def lose(self, most: int = NUM_ROWS) -> None:
        """Counts what is computed and not committed, and has just been lost."""
        num_lost = self.job.num_computed() - self.num_in_flight - self.job.num_committed("data")
        self.num_in_flight += min(max(0, num_lost), most)

    def kill_driver(self) -> None:
        """Starts or goes on, and kills the driver after some more parts."""
        committed = self.job.num_committed()
        driver = self.job.start("--mode", "resume")
        more = self.rng.randint(1, 120)
        driver.wait_until(lambda: self.job.num_committed() >= committed + more)
        time.sleep(self.rng.uniform(0, 0.3))
        driver.send(signal.SIGKILL)
        driver.wait()
        self.lose()
        # Not equal: workers of the driver killed before may commit what they hold for a moment after it.
        assert self.job.manifest()["already_done"] >= committed, "a committed row is not done again"

    def kill_beneath(self, driver: Driver, kind: str) -> bool:
        """Kills an actor, a task's process or a node once another part is there; whether the driver still lived."""
        before = self.job.num_committed()
        driver.wait_until(lambda: self.job.num_committed() > before)
        time.sleep(self.rng.uniform(0, 0.2))
        if not driver.is_alive:
            return False
        if kind == "node":
            self.machines.kill_node()
            self.lose()
            return True
        victims = self.machines.workers("ray::MapWorker" if kind == "actor" else r"ray::(Map\(|Read|IDLE)")
        if not victims:
            return False
        os.kill(self.rng.choice(victims), signal.SIGKILL)
        self.lose(BLOCKS_PER_ACTOR * BLOCK_ROWS)
        return True


def test_killed_drivers_actors_workers_and_nodes_lose_and_double_nothing(
    machines: Machines, job: Job, expected: Answers, tmp_path: Path
) -> None:
    rng = random.Random(SEED)
    kills: Counter[str] = Counter()
    round_ = num_again = num_in_flight = 0
    while not round_ or min(kills["driver"], kills.total() - kills["driver"]) < NUM_KILLS:
        job.spec["output"]["path"] = str(tmp_path / f"out-{round_}")
        (job.folder / "trace").unlink(missing_ok=True)
        disturbed = Disturbed(job, machines, rng)
        for _ in range(4 if NUM_KILLS else 1):
            disturbed.kill_driver()
            kills["driver"] += 1
        code, text = call("status", str(job.out))
        assert (code, "not running; finish it with --mode resume" in text) == (0, True), text
        assert call("verify", str(job.out))[0] == 4
        driver = job.start("--mode", "resume")
        for kind in ("actor", "node" if round_ % 4 == 0 else "actor", "task", "actor"):
            kills[kind] += disturbed.kill_beneath(driver, kind)
        code, text = driver.wait()
        assert code == 0, text
        assert job.answers() == expected
        code, text = call("verify", str(job.out))
        assert code == 0, text
        again = job.num_computed() - sum(status == "ok" for status, _, _ in expected.values())
        assert 0 <= again <= disturbed.num_in_flight, "only what was in flight is computed again"
        num_again, num_in_flight = num_again + again, num_in_flight + disturbed.num_in_flight
        round_ += 1
        print(
            f"{dict(kills)} killed in {round_} jobs of {NUM_ROWS} rows: {num_again} rows computed again, "
            f"{num_in_flight} were in flight"
        )
    assert kills["actor"] + kills["node"] > 1


def test_a_finished_run_is_left_alone_and_a_damaged_one_is_mended(job: Job, expected: Answers) -> None:
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
