"""A small job with pictures for the demo model, and what one process answers."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ray_job.demo.pictures import encode
from ray_job.demo.questions import make_split
from ray_job.inputs.source import iter_tables
from ray_job.rows import POSITION, ROW_ID, output_schema
from ray_job.spec import JobSpec
from ray_job.stages.generate import GenerateActor
from ray_job.stages.open_job import open_job
from tests.chaos.harness import Job

Answers = dict[Any, tuple[str, str | None, str | None]]
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about demo pictures, every fifteenth picture broken."""
    rows = []
    for example in make_split("test", 40, seed=5):
        images = [{"bytes": encode(picture, "PNG"), "path": None} for picture in example.pictures]
        for question in example.questions:
            broken = [{"bytes": b"not a picture", "path": None}] if len(rows) % 15 == 4 else images
            rows.append({"id": f"q-{len(rows):04}", "image": broken, "question": question.question})
    schema = pa.schema([("id", pa.string()), ("image", pa.list_(_IMAGE)), ("question", pa.string())])
    path = tmp_path_factory.mktemp("table") / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=40)
    return path


@pytest.fixture(scope="session")
def make_job(table: Path) -> Callable[[Path], Job]:
    """A job in a folder, its spec in `job.yaml` there."""

    def make(folder: Path) -> Job:
        spec = {
            "input": {"path": str(table), "id_column": "id"},
            "prompt": {"template": "{question}"},
            "model": {"path": "builtin:demo", "dtype": "float32", "device": "cpu"},
            "generation": {"max_new_tokens": 16},
            "batching": {"block_rows": 8, "blocks_per_actor": 2, "max_batch_rows": 8},
            "output": {"path": str(folder / "out"), "part_rows": 16},
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "job.yaml").write_text(yaml.safe_dump(spec))
        return Job(folder, spec)

    return make


@pytest.fixture(scope="session")
def expected(make_job: Callable[[Path], Job], tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What the actor answers in this process, without Ray."""
    return answers_here(make_job(tmp_path_factory.mktemp("bare")))


def answers_here(job: Job) -> Answers:
    """What a job's actor answers in this process, without Ray."""
    spec, source, preparer = open_job(JobSpec.from_dict(job.spec))
    actor = GenerateActor(spec, output_schema(source.id_field.type, source.kept, spec.has_questions))
    found: Answers = {}
    for rows in iter_tables(source, 64):
        numbered = rows.add_column(0, POSITION, pa.array(range(rows.num_rows)))
        for row in actor.generate(preparer(numbered)).to_pylist():
            found[row[ROW_ID]] = (row["status"], row["generated_text"], row["error"] and row["error"]["code"])
    return found


@pytest.fixture
def an_alarm() -> Iterator[None]:
    """A timer of the user's, which a job must neither stop nor be stopped by."""
    previous = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 1000)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)
