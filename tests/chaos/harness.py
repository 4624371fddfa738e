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
import yaml

from ray_job import JobSpec
from ray_job.actor import GenerateActor
from ray_job.inputs import iter_tables
from ray_job.job import open_job
from ray_job.rows import POSITION, output_schema

PATIENCE_S = 240.0
NUM_ROWS, BAD_EVERY = 240, 40


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

    def answers(self) -> dict[Any, tuple[str, str | None, str | None]]:
        """Row id → status, answer, error code; fails if an id comes twice."""
        rows = [row for part in sorted(self.out.glob("*/part-*.parquet")) for row in pq.read_table(part).to_pylist()]
        found = {row["row_id"]: _essence(row) for row in rows}
        assert len(found) == len(rows), "a row came out twice"
        return found

    def expected(self) -> dict[Any, tuple[str, str | None, str | None]]:
        """What an undisturbed run answers, computed here without Ray."""
        spec, source, preparer = open_job(JobSpec.from_dict(self.spec))
        schema = output_schema(source.id_field.type, source.kept, spec.has_questions)
        actor = GenerateActor(spec, schema)
        rows: list[dict[str, Any]] = []
        for table in iter_tables(source, 64):
            numbered = table.add_column(0, POSITION, pa.array(range(table.num_rows)))
            rows += actor.generate(preparer(numbered)).to_pylist()
        return {row["row_id"]: _essence(row) for row in rows}

    def num_committed(self) -> int:
        """Rows in whole parts on disk."""
        return sum(pq.read_metadata(part).num_rows for part in self.out.glob("*/part-*.parquet"))

    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.out / "_manifest.json").read_text()))


class Driver:
    """A running `python -m ray_job run`, in a process group of its own."""

    def __init__(self, arguments: list[str], log: Path, env: Mapping[str, str]) -> None:
        self._log = log
        with log.open("w") as stream:
            self._process = subprocess.Popen(
                arguments,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "RAY_AUTH_MODE": "disabled", **env},
                start_new_session=True,
            )

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

    def workers(self, pattern: str) -> list[int]:
        """Processes below this driver whose title matches, such as Ray's `ray::MapWorker`."""
        found = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
        table = [match.groups() for line in found.splitlines() if (match := re.match(r"\s*(\d+)\s+(\d+)\s+(.*)", line))]
        family, grew = {self._process.pid}, True
        while grew:
            children = {int(pid) for pid, parent, _ in table if int(parent) in family} - family
            grew = bool(children)
            family |= children
        return [int(pid) for pid, _, title in table if int(pid) in family and re.match(pattern, title)]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ray_job", *arguments]


def call(*arguments: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """A command that needs no Ray: exit code and what it said."""
    finished = subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
    return finished.returncode, finished.stdout + finished.stderr


def make_job(folder: Path, model: Path, num_rows: int = NUM_ROWS) -> Job:
    """Text rows of mixed lengths, some of them without a prompt, for the tiny model."""
    questions = [
        None if row % BAD_EVERY == 7 else f"what is {'the other ' * (row % 9)}{row}?" for row in range(num_rows)
    ]
    ids = [f"id-{row:05}" for row in range(num_rows)]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": ids, "question": questions}), folder / "rows.parquet", row_group_size=50)
    spec = {
        "input": {"path": str(folder / "rows.parquet"), "id_column": "id", "image_columns": []},
        "model": {"path": str(model), "num_crops": 1, "dtype": "float32", "device": "cpu"},
        "generation": {"max_new_tokens": 8},
        "batching": {"block_rows": 8, "blocks_per_actor": 2, "max_batch_rows": 8},
        "output": {"path": str(folder / "out"), "part_rows": 16},
    }
    return Job(folder, spec)


def _essence(row: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    return row["status"], row["generated_text"], row["error"] and row["error"]["code"]
