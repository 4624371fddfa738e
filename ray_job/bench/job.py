"""What the pipeline around an engine costs: time per row, against the same actor in a bare loop, and driver memory.

    python -m ray_job bench job --rows 2000 20000
    python -m ray_job bench job --model builtin:demo --rows 500 5000

With the no-op engine reading, preparing, moving, writing and counting are all there is. A larger size against the one
before it shows what each further row costs once everything has started, and whether that grows.

Figures are in `bench/RESULTS.md`. What bounds driver memory: `cluster/backpressure.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import io
import itertools
import json
import multiprocessing
import os
import platform
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
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
    held_driver_mib: float  # after the job, free memory given back

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
    parser.add_argument("--model", default="builtin:noop", help="a model's folder, builtin:demo or builtin:noop")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    # A process for each size: memory that an earlier one freed would be counted with the next one's.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        measured = list(
            processes.map(_measure, itertools.repeat(arguments.model), arguments.rows, itertools.repeat(arguments.seed))
        )
    print(
        f"{'rows':>8}{'bare ms/row':>14}{'job ms/row':>12}{'further row ms':>16}{'job s':>9}"
        f"{'driver peak MiB':>17}{'held MiB':>10}"
    )
    for before, row in zip([None, *measured], measured, strict=False):
        further = "" if before is None else f"{_further_ms(before, row):.2f}"
        line = f"{row.rows:>8}{row.bare_ms:>14.2f}{row.job_ms:>12.2f}{further:>16}{row.job_s:>9.1f}"
        print(f"{line}{row.peak_driver_mib:>17.0f}{row.held_driver_mib:>10.0f}")
    for before, row in itertools.pairwise(measured):
        print(
            f"{row.rows / before.rows:.3g} times the rows took {row.job_s / before.job_s:.3g} times as long; "
            f"a further row ran at {row.bare_ms / _further_ms(before, row):.2f} times the speed of the bare loop"
        )
    result = {"machine": _machine(), "model": arguments.model, "sizes": [asdict(row) for row in measured]}
    print(json.dumps(result))
    return 0


def _further_ms(before: Measured, row: Measured) -> float:
    """Milliseconds that one more row costs, start-up and end left out."""
    return (row.job_s - before.job_s) / (row.rows - before.rows) * 1000


def _measure(model: str, rows: int, seed: int) -> Measured:
    """Measures one size in a process of its own: the job first, so that no other memory is counted."""
    from ray_job.cluster.session import ray_session
    from ray_job.job import run_job

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_rows(folder / "rows.parquet", rows, seed)
        spec = JobSpec.from_dict(
            {
                "input": {"path": str(folder / "rows.parquet")},
                "model": {"path": model} | ({"num_crops": 1} if model == "builtin:noop" else {}),
                "generation": {"max_new_tokens": 16},
                "output": {"path": str(folder / "out")},
            }
        )
        with ray_session(), _PeakMemory() as memory:
            started_s = time.monotonic()
            run_job(spec, stream=io.StringIO())
            job_s = time.monotonic() - started_s
            held_mib = _held_mib()
        return Measured(rows, _bare_loop(spec), job_s, memory.peak_mib, held_mib)


def _bare_loop(spec: JobSpec) -> float:
    """Seconds that the same stages take one after another in this process, with nothing written."""
    from ray_job.inputs.source import iter_tables
    from ray_job.rows import POSITION, output_schema
    from ray_job.stages.generate import GenerateActor
    from ray_job.stages.open_job import open_job

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
        while not self._done.wait(_SAMPLE_INTERVAL_S):
            self.peak_mib = max(self.peak_mib, _resident_mib())


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _held_mib() -> float:
    """Resident memory in MiB, less what the allocator merely caches."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    return _resident_mib()


def _machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "arch": platform.machine(), "python": platform.python_version()}
