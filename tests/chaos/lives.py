"""Runs a job's two guarded stages in processes that really die, without Ray: `python -m tests.chaos.lives FOLDER`.

Each life is a fork of this process; store lie in a file. Prints one JSON object: deaths by stage, and the records.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_job import JobSpec
from ray_job.inputs.source import iter_tables
from ray_job.rows import POSITION, output_schema
from ray_job.stages.generate import GenerateActor
from ray_job.stages.open_job import open_job

from . import poison

BLOCK_ROWS, BLOCKS_AT_ONCE = 16, 4
MAX_DEATHS = 60


class FileStore:
    """DurableStore in one file; one process at a time."""

    worker = "one"

    def __init__(self, path: Path) -> None:
        self._path = path

    def put(self, key: str, value: bytes, overwrite: bool = True) -> bool:
        values = self._load()
        if overwrite or key not in values:
            self._save({**values, key: value})
        return key in values

    def get(self, key: str) -> bytes | None:
        return self._load().get(key)

    def delete(self, key: str) -> None:
        self._save({name: value for name, value in self._load().items() if name != key})

    def _load(self) -> dict[str, bytes]:
        return dict(pickle.loads(self._path.read_bytes())) if self._path.exists() else {}

    def _save(self, values: dict[str, bytes]) -> None:
        temporary = self._path.with_suffix(".tmp")
        temporary.write_bytes(pickle.dumps(values))
        temporary.replace(self._path)


def num_deaths(work: Callable[[], None]) -> int:
    """Lives until one ends well."""
    for count in range(MAX_DEATHS):
        pid = os.fork()
        if pid == 0:
            work()
            os._exit(0)
        if os.waitpid(pid, 0)[1] == 0:
            return count
    raise AssertionError(f"more than {MAX_DEATHS} deaths")


def main(folder: Path) -> dict[str, Any]:
    poison.install()
    spec, source, preparer = open_job(JobSpec.from_yaml(folder / "job.yaml"))
    store = FileStore(folder / "store")
    schema = output_schema(source.id_field.type, source.kept, spec.has_questions)
    first, prepare_deaths = 0, 0
    blocks = []
    for table in iter_tables(source, BLOCK_ROWS):
        numbered = table.add_column(0, POSITION, pa.array(range(first, first + table.num_rows)))
        first += table.num_rows
        file = folder / f"prepared-{len(blocks)}"
        prepare_deaths += num_deaths(
            lambda table=numbered, file=file: pq.write_table(preparer.with_store(store)(table), file)  # type: ignore[misc]
        )
        blocks.append(pq.read_table(file))

    async def answer_all() -> None:
        actor, turns = GenerateActor(spec, schema, store=store), asyncio.Semaphore(BLOCKS_AT_ONCE)

        async def answer(number: int) -> None:
            file = folder / f"answered-{number}"
            if file.exists():
                return
            async with turns:
                async for table in actor(blocks[number]):
                    pq.write_table(table, file.with_suffix(".tmp"))
            file.with_suffix(".tmp").replace(file)

        await asyncio.gather(*map(answer, range(len(blocks))))

    generate_deaths = num_deaths(lambda: asyncio.run(answer_all()))
    records = [row for number in range(len(blocks)) for row in pq.read_table(folder / f"answered-{number}").to_pylist()]
    left = list(store._load())
    return {"prepare_deaths": prepare_deaths, "generate_deaths": generate_deaths, "left": left, "records": records}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
