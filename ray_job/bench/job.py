"""What the pipeline around an engine costs: time per row, against the same actor in a bare loop, and driver memory.

    python -m ray_job bench job --rows 2000 20000

Each size runs as a job with the no-op engine: reading, preparing, moving, writing and counting are all there is.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ray_job.spec import JobSpec

_SAMPLE_INTERVAL_S = 0.05
_DISTINCT_PICTURES = 64


@dataclass(frozen=True, slots=True)
class Measured:
    """One size. Start-up of Ray and of its first workers is counted in `job_s`, not in `per_row_ms`."""

    rows: int
    bare_s: float  # preparing and answering in one process, without Ray
    job_s: float  # the whole job, Ray already running
    peak_driver_mib: float

    @property
    def bare_ms(self) -> float:
        return self.bare_s / self.rows * 1000

    @property
    def job_ms(self) -> float:
        return self.job_s / self.rows * 1000


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(prog="python -m ray_job bench job", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[2000, 20000], metavar="N", help="sizes of the job")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    from ray_job.cluster import ray_session

    with tempfile.TemporaryDirectory() as folder, ray_session():
        measured = [_measure(Path(folder), rows, arguments.seed) for rows in arguments.rows]
    print(f"{'rows':>8}  {'bare ms/row':>11}  {'job ms/row':>10}  {'job s':>7}  {'driver peak MiB':>15}")
    for row in measured:
        line = f"{row.rows:>8}  {row.bare_ms:>11.2f}  {row.job_ms:>10.2f}  {row.job_s:>7.1f}"
        print(f"{line}  {row.peak_driver_mib:>15.0f}")
    print(json.dumps({"machine": _machine(), "sizes": [asdict(row) for row in measured]}))
    return 0


def _measure(folder: Path, rows: int, seed: int) -> Measured:
    from ray_job.job import run_job

    table = folder / f"{rows}.parquet"
    _write_rows(table, rows, seed)
    spec = JobSpec.from_dict(
        {
            "input": {"path": str(table)},
            "model": {"path": "builtin:noop", "num_crops": 1},
            "output": {"path": str(folder / f"out-{rows}")},
        }
    )
    bare_s = _bare_loop(spec)
    with _PeakMemory() as memory:
        started_s = time.monotonic()
        run_job(spec, stream=io.StringIO())
        job_s = time.monotonic() - started_s
    return Measured(rows, bare_s, job_s, memory.peak_mib)


def _bare_loop(spec: JobSpec) -> float:
    """Seconds that the same stages take one after the other in this process, nothing written."""
    from ray_job.actor import GenerateActor
    from ray_job.inputs import iter_tables
    from ray_job.job import open_job
    from ray_job.rows import POSITION, output_schema

    spec, source, preparer = open_job(spec)
    actor = GenerateActor(spec, output_schema(source.id_field.type, source.kept, spec.has_questions))
    started_s = time.monotonic()
    for table in iter_tables(source, spec.batching.block_rows):
        actor.generate(preparer(table.add_column(0, POSITION, pa.array(range(table.num_rows)))))
    return time.monotonic() - started_s


def _write_rows(file: Path, rows: int, seed: int) -> None:
    """Questions about small seeded JPEGs."""
    rng = random.Random(seed)
    pictures = []
    for _ in range(_DISTINCT_PICTURES):
        stream = io.BytesIO()
        Image.frombytes("RGB", (48, 36), rng.randbytes(48 * 36 * 3)).save(stream, "JPEG")
        pictures.append({"bytes": stream.getvalue(), "path": None})
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("id", pa.int64()), ("image", image), ("question", pa.string())])
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, rows, 1000):
            batch: list[dict[str, Any]] = [
                {"id": index, "image": pictures[index % len(pictures)], "question": f"What is picture {index}?"}
                for index in range(start, min(start + 1000, rows))
            ]
            writer.write_table(pa.Table.from_pylist(batch, schema))


class _PeakMemory:
    """The most resident memory of this process while open, in MiB."""

    def __init__(self) -> None:
        self.peak_mib = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        page_mib = os.sysconf("SC_PAGE_SIZE") / 2**20
        while not self._done.wait(_SAMPLE_INTERVAL_S):
            resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.peak_mib = max(self.peak_mib, resident_pages * page_mib)


def _machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "arch": platform.machine(), "python": platform.python_version()}
