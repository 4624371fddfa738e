"""Whole jobs, from `python` to the last row on disk: ours, the naive recipe, and Ray Data LLM where it is installed.

    python -m ray_job bench whole --rows 64
    python -m ray_job bench whole --peer ray_data_llm=/path/to/its/environment/bin/python

Each is a process of its own that reads the same job.yaml: a Parquet table of JPEG pictures and questions, as `bench
engine` has them in its long-tailed workload, and a checkpoint with random weights. Starting Python, Ray and the engine
and reading the weights counts; what a job does after its last row is written does not. Every word of the tokenizer is
one token, so that equal texts are equal tokens.

Figures are in `bench/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from ray_job.bench.engine import build_model, commit, cpu_name
from ray_job.bench.peers.peer import WHOLE_PEERS, PeerError, named_python, run_logged, vllm_environment
from ray_job.bench.workloads import Workload
from ray_job.models.phi3_vision.processor import PIXELS
from ray_job.models.phi3_vision.weights import save
from ray_job.rows import Sample

_DESCRIPTIONS = {
    "ours": "this package",
    "recipe": "naive map_batches, batches of 8 in file order",
    **{name: f"{title}, in its own environment" for name, title in WHOLE_PEERS.items()},
}
_SPECIALS = {
    "<unk>": 0,
    "<s>": 1,
    "</s>": 2,
    "<|endoftext|>": 32000,
    "<|assistant|>": 32001,
    "<|system|>": 32006,
    "<|end|>": 32007,
    "<|user|>": 32010,
}
_SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("question", pa.string()),
        ("parameters", pa.struct([("max_new_tokens", pa.int32())])),
    ]
)
NUM_WORDS = 32000  # prompts are made of the ids below
_SAMPLE_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Measured:
    """One whole job."""

    job: str
    rows: int
    seconds: float  # until the last row was on disk
    cpu_s: float  # of all its processes, as last seen; half a second of each may be missing
    peak_memory_gib: float  # anonymous pages of all its processes: neither mapped files nor Ray's object store
    new_tokens: int

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints a table, and one JSON object on the last line. Returns 1 where a job failed."""
    arguments = _arguments(argv)
    measured: list[Measured] = []
    answers: dict[str, dict[int, str]] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(arguments.folder or name).absolute()
        spec = _write_job(folder, arguments)
        print(f"{'job':50}{'rows':>6}{'seconds':>10}{'CPU s':>9}{'GiB':>7}{'rows/s':>9}{'tokens/s':>10}{'alike':>7}")
        for job, command, environment in _jobs(folder, arguments):
            try:
                row, answers[job] = _measure(job, command, environment, folder, spec)
            except PeerError as error:
                failed[job] = str(error)
                print(f"{_DESCRIPTIONS[job]:50}  failed: {error}", flush=True)
            else:
                measured.append(row)
                print(f"{_line(row)}{_alike(answers)[job]:7}", flush=True)
    alike = _alike(answers)
    print(json.dumps(_report(arguments, measured) | {"rows_alike": alike, "failed": failed}))
    return 1 if failed else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ray_job bench whole", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--only", nargs="+", choices=list(_DESCRIPTIONS), metavar="JOB", help=", ".join(_DESCRIPTIONS))
    parser.add_argument(
        "--peer",
        type=named_python(WHOLE_PEERS),
        action="append",
        default=[],
        metavar="NAME=PYTHON",
        help=f"another job ({', '.join(WHOLE_PEERS)}) and the Python of an environment that has it",
    )
    parser.add_argument("--num-crops", type=int, default=4, help="most crops of a picture")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="an empty one, to keep what the jobs wrote and said")
    return parser.parse_args(argv)


def _jobs(folder: Path, arguments: argparse.Namespace) -> list[tuple[str, list[str], dict[str, str]]]:
    """Name, command without the spec, and environment of each job."""
    here = dict(os.environ)
    cores = len(os.sched_getaffinity(0))
    # Ray gives an actor as many threads as it has CPUs, and theirs have one; ours asks for all by itself.
    all_cores = {"OMP_NUM_THREADS": str(cores)}
    jobs = [
        ("ours", [sys.executable, "-m", "ray_job", "run"], here),
        ("recipe", [sys.executable, "-m", "ray_job.bench.recipe_job"], here | all_cores),
    ]
    for name, python in arguments.peer:
        environment = vllm_environment(python, cores, folder)
        jobs.append((name, [str(python), "-m", f"ray_job.bench.peers.{name}_job"], environment | all_cores))
    return [job for job in jobs if not arguments.only or job[0] in arguments.only]


def _measure(
    job: str, command: Sequence[str], environment: dict[str, str], folder: Path, spec: dict[str, Any]
) -> tuple[Measured, dict[int, str]]:
    """Runs a job to its end. Raises PeerError where it fails or leaves a row out."""
    output, file = folder / job, folder / f"{job}.yaml"
    file.write_text(json.dumps({**spec, "output": {"path": str(output)}}))
    started_s = time.time()
    with _Usage() as usage:
        run_logged([*command, str(file)], environment, folder / f"{job}.log")
    written_s = max(part.stat().st_mtime for part in output.rglob("*.parquet"))
    table = pq.read_table(output, columns=["row_id", "generated_text"])
    answers = dict(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True))
    missing = pq.read_metadata(spec["input"]["path"]).num_rows - sum(text is not None for text in answers.values())
    if missing:
        raise PeerError(f"{missing} rows have no answer")
    new_tokens = sum(len(text.split()) for text in answers.values())
    row = Measured(job, len(answers), written_s - started_s, usage.cpu_s, usage.peak_gib, new_tokens)
    return row, answers


def _write_job(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The checkpoint, the table and the spec without its output."""
    model = build_model(False, getattr(torch, arguments.dtype), torch.device("cpu"), bool(arguments.peer))
    save(model, folder / "model")
    write_processor(folder / "model", model.config.vocab_size, arguments.num_crops)
    samples = Workload(arguments.seed, NUM_WORDS, arguments.num_crops).long_tailed(arguments.rows)
    return write_rows(folder, samples, arguments.dtype)


def write_rows(folder: Path, samples: Sequence[Sample], dtype: str) -> dict[str, Any]:
    """A table that asks what `samples` ask, and the spec of a job over it with the model in `folder`.

    The samples have one picture each and the same text before it.
    """
    pq.write_table(pa.Table.from_pylist([_row(sample) for sample in samples], _SCHEMA), folder / "rows.parquet")
    return {
        "input": {"path": str(folder / "rows.parquet"), "id_column": "id"},
        "prompt": {"template": "{question}", "system": _words(_texts(samples[0])[0])},
        "model": {"path": str(folder / "model"), "dtype": dtype},
        "generation": {"overrides_column": "parameters"},
    }


def write_processor(folder: Path, vocab_size: int, num_crops: int) -> None:
    """The files beside the weights; every id but the special ones is a word of the tokenizer."""
    plain = sorted(set(range(vocab_size)) - set(_SPECIALS.values()))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    vocabulary = _SPECIALS | {f"t{token}": token for token in plain}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": token, "content": name, **flags} for name, token in _SPECIALS.items()],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "preprocessor_config.json").write_text(json.dumps({"num_crops": num_crops}))


def _row(sample: Sample) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.fromarray(sample.pictures[0].arrays[PIXELS]).save(stream, "JPEG", quality=90)
    return {
        "id": sample.key,
        "image": {"bytes": stream.getvalue(), "path": None},
        "question": _words(_texts(sample)[1]),
        "parameters": {"max_new_tokens": sample.params.max_new_tokens},
    }


def _texts(sample: Sample) -> tuple[Sequence[int], Sequence[int]]:
    """The text before the picture and the text after it; the processor itself puts `<s>` between."""
    ids = sample.input_ids
    start, num_places = ids.index(-1), sum(token < 0 for token in ids)
    return ids[:start], ids[start + num_places + 1 :]


def _words(ids: Sequence[int]) -> str:
    return " ".join(f"t{token}" for token in ids)


class _Usage:
    """CPU time and memory of the processes that this one starts, sampled from /proc while open."""

    def __init__(self) -> None:
        self.peak_gib = 0.0
        self._cpu_s: dict[int, float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def cpu_s(self) -> float:
        return sum(self._cpu_s.values())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        ticks = os.sysconf("SC_CLK_TCK")
        while not self._done.wait(_SAMPLE_INTERVAL_S):
            found = _processes()
            family = {os.getpid()}
            while more := {process for process, stat in found.items() if stat.parent in family} - family:
                family |= more
            family.remove(os.getpid())
            self._cpu_s |= {process: found[process].ticks / ticks for process in family}
            self.peak_gib = max(self.peak_gib, sum(map(_anonymous_kib, family)) / 2**20)


@dataclass(frozen=True, slots=True)
class _Stat:
    parent: int
    ticks: int  # of the processor


def _processes() -> dict[int, _Stat]:
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended
            fields = file.read_text().rpartition(")")[2].split()
            found[int(file.parent.name)] = _Stat(int(fields[1]), int(fields[11]) + int(fields[12]))
    return found


def _anonymous_kib(process: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
    return 0


def _line(row: Measured) -> str:
    return (
        f"{_DESCRIPTIONS[row.job]:50}{row.rows:6}{row.seconds:10.1f}{row.cpu_s:9.1f}{row.peak_memory_gib:7.1f}"
        f"{row.rows_per_s:9.2f}{row.new_tokens / row.seconds:10.1f}"
    )


def _alike(answers: Mapping[str, Mapping[int, str]]) -> dict[str, int]:
    """Rows with our job's tokens, by job. Random weights leave many near ties, which rounding may turn."""
    ours = answers.get("ours", {})
    return {job: sum(ours.get(key) == text for key, text in theirs.items()) for job, theirs in answers.items()}


def _report(arguments: argparse.Namespace, measured: Sequence[Measured]) -> dict[str, Any]:
    ours = next((row for row in measured if row.job == "ours"), None)
    return {
        "benchmark": "whole",
        "machine": cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "dtype": arguments.dtype,
        "num_crops": arguments.num_crops,
        "seed": arguments.seed,
        "commit": commit(),
        "results": [{**asdict(row), "rows_per_s": row.rows_per_s} for row in measured],
        "times_as_fast": {
            row.job: round(row.seconds / ours.seconds, 3) for row in measured if ours and row is not ours
        },
    }


if __name__ == "__main__":
    raise SystemExit(main())
