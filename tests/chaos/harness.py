"""Runs the real command line on a small job and does it harm. Kills only processes that it started."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from ray.cluster_utils import Cluster

from ray_job import JobSpec
from ray_job.inputs.source import iter_tables
from ray_job.rows import POSITION, ROW_ID, SAMPLES, Sample
from ray_job.stages.open_job import open_job

from .poison import answer
from .traced import TRACE

PATIENCE_S = 240.0
NUM_ROWS, BAD_EVERY = 600, 40
BLOCK_ROWS, BLOCKS_PER_ACTOR = 8, 2
Answers = dict[Any, tuple[str, str | None, str | None]]
ROOT = str(Path(__file__).parents[2])
_RAY_ENV = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": ROOT}


class Machines:
    """A Ray cluster on this machine: a head where only drivers run, and two nodes that work and can be killed."""

    def __init__(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in _RAY_ENV.items():
                patch.setenv(name, value)
            head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 * 2**20}
            self._cluster = Cluster(initialize_head=True, head_node_args=head)
            self._nodes = [self._add_node(), self._add_node()]

    @property
    def env(self) -> dict[str, str]:
        """For a driver that is to run here."""
        return {**_RAY_ENV, "RAY_ADDRESS": str(self._cluster.address)}

    def workers(self, pattern: str) -> list[int]:
        """Processes that work, whose title matches, such as Ray's `ray::MapWorker`."""
        return [pid for node in self._nodes for pid, title in self._children(node) if re.match(pattern, title)]

    def kill_node(self) -> None:
        """Kills the node an actor runs on as a machine does that vanishes; another takes its place."""
        busy = [node for node in self._nodes if any("MapWorker" in title for _, title in self._children(node))]
        node = (busy or self._nodes)[0]
        for pid in (*(pid for pid, _ in self._children(node)), _raylet(node)):
            os.kill(pid, signal.SIGKILL)
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._add_node())

    def shutdown(self) -> None:
        self._cluster.shutdown()

    def _add_node(self) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in _RAY_ENV.items():
                patch.setenv(name, value)
            return self._cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)

    def _children(self, node: Any) -> list[tuple[int, str]]:
        """Ray's workers of a node, but not the agents beside them: it does not outlive those."""
        listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
        fields = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
        return [
            (int(pid), title)
            for pid, parent, title in fields
            if int(parent) == _raylet(node) and re.match(r"ray::(?!.*Agent)", title)
        ]


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


@dataclass
class Job:
    """A job on disk, and what the command line does with it."""

    folder: Path
    spec: dict[str, Any]
    env: dict[str, str] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return Path(self.spec["output"]["path"])

    def start(self, *arguments: str) -> Driver:
        file = self.folder / "job.yaml"
        file.write_text(yaml.safe_dump(self.spec))
        return Driver(command("run", str(file), *arguments), self.folder / "driver.log", self.env)

    def run(self, *arguments: str) -> tuple[int, str]:
        """Runs to the end: exit code and what was said."""
        return self.start(*arguments).wait()

    def answers(self) -> Answers:
        """Row id → status, answer, error code; fails if an id comes twice."""
        rows = [row for part in sorted(self.out.glob("*/part-*.parquet")) for row in pq.read_table(part).to_pylist()]
        found = {row["row_id"]: _essence(row) for row in rows}
        assert len(found) == len(rows), "a row came out twice"
        return found

    def expected(self) -> Answers:
        """What an undisturbed run answers, computed here without Ray."""
        spec, source, preparer = open_job(JobSpec.from_dict(self.spec))
        rows: Answers = {}
        for table in iter_tables(source, 64):
            numbered = table.add_column(0, POSITION, pa.array(range(table.num_rows)))
            for row in preparer(numbered).select([ROW_ID, SAMPLES]).to_pylist():
                (sample,) = row[SAMPLES]
                error = sample["error"]
                text = None if error else answer(Sample(0, sample["input_ids"], (), spec.generation.params))
                rows[row[ROW_ID]] = ("error" if error else "ok", text, error and error["code"])
        return rows

    def num_computed(self) -> int:
        """Rows that engines have answered so far, again and again where they had to."""
        trace = self.folder / "trace"
        return sum(map(int, trace.read_text().split())) if trace.exists() else 0

    def num_committed(self, folder: str = "*") -> int:
        """Rows in whole parts on disk."""
        return sum(pq.read_metadata(part).num_rows for part in self.out.glob(f"{folder}/part-*.parquet"))

    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.out / "_manifest.json").read_text()))

    def activity(self) -> dict[str, float]:
        """What the last run's workers did."""
        return dict(json.loads((self.out / "_report.json").read_text())["activity"])


class Driver:
    """A running `python -m ray_job run`, in a process group of its own."""

    def __init__(self, arguments: list[str], log: Path, env: Mapping[str, str]) -> None:
        self._log = log
        with log.open("w") as stream:
            self._process = subprocess.Popen(
                arguments,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_RAY_ENV, **env},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> tuple[int, str]:
        code = self._process.wait(PATIENCE_S)
        return code, self._log.read_text()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Waits while the driver lives."""
        deadline_s = time.monotonic() + PATIENCE_S
        while self.is_alive and not condition():
            assert time.monotonic() < deadline_s, self._log.read_text()
            time.sleep(0.05)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ray_job", *arguments]


def call(*arguments: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """A command that needs no Ray: exit code and what it said."""
    finished = subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
    return finished.returncode, finished.stdout + finished.stderr


def run_though_killed(job: Job, machines: Machines, num_rows: int) -> None:
    """Runs a job of so many rows to its end: its driver is killed in the middle, and the actors of the one after it."""
    driver = job.start()
    driver.wait_until(lambda: job.num_committed() > 0)
    driver.send(signal.SIGKILL)
    driver.wait()
    committed = job.num_committed()
    assert 0 < committed < num_rows
    driver = job.start("--mode", "resume")
    driver.wait_until(lambda: job.num_committed() > committed and bool(machines.workers("ray::MapWorker")))
    for victim in machines.workers("ray::MapWorker"):
        os.kill(victim, signal.SIGKILL)
    code, text = driver.wait()
    assert code == 0, text


def make_job(folder: Path, machines: Machines | None = None, num_rows: int = NUM_ROWS) -> Job:
    """Text rows of mixed lengths, some of them without a prompt; its workers leave a trace of what they compute."""
    questions = [
        None if row % BAD_EVERY == 7 else f"what is {'the other ' * (row % 9)}{row}?" for row in range(num_rows)
    ]
    ids = [f"id-{row:05}" for row in range(num_rows)]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": ids, "question": questions}), folder / "rows.parquet", row_group_size=50)
    spec = {
        "input": {"path": str(folder / "rows.parquet"), "id_column": "id", "image_columns": []},
        "model": {"path": "builtin:noop"},
        "generation": {"max_new_tokens": 8},
        "batching": {"block_rows": BLOCK_ROWS, "blocks_per_actor": BLOCKS_PER_ACTOR},
        "workers": {"cpus_per_actor": 0.5},  # the head has none: it runs nothing of the job
        "output": {"path": str(folder / "out"), "part_rows": 16},
    }
    hook = {"worker_process_setup_hook": "tests.chaos.traced.install", "env_vars": {TRACE: str(folder / "trace")}}
    env = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": hook})}
    return Job(folder, spec, {**env, **(machines.env if machines is not None else {})})


def _essence(row: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    return row["status"], row["generated_text"], row["error"] and row["error"]["code"]
