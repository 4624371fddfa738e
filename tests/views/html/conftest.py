"""Outputs to make pages of: real runs, their results written by the real part writer; and a browser."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_job import JobSpec
from ray_job.output.parts import Receipt
from ray_job.output.run import Run
from ray_job.rows import ATTEMPTS, NUM_QUESTIONS, POSITION, output_schema, result_schema
from ray_job.stages.open_job import open_job
from ray_job.stages.write import PartWriter
from ray_job.storage.places import locate

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
Change = Callable[[int], dict[str, Any]]


def png(colour: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def result(position: int, row_id: str, **other: Any) -> dict[str, Any]:
    """One answered row as the actor gives it."""
    return {
        POSITION: position,
        ATTEMPTS: 0,
        NUM_QUESTIONS: 1,
        "row_id": row_id,
        "generated_text": f"answer {position}",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 100 + position % 50, "completion_tokens": 1 + position % 7},
        "status": "ok",
        "error": None,
        "attempts": 1,
        "latency_ms": 100.0 + position % 90,
        **other,
    }


def failure(code: str, message: str, stage: str = "prepare") -> dict[str, Any]:
    """What makes a result a failed one."""
    error = {"type": "RowError", "code": code, "message": message, "stage": stage, "retryable": False}
    return {
        "generated_text": None,
        "finish_reason": None,
        "usage": None,
        "status": "error",
        "error": error,
        "latency_ms": None,
    }


@dataclass
class Output:
    """An input file, and a run over it that this process does without Ray or a model."""

    folder: Path
    bucket: str | None = None  # a URI where all lies instead of the folder
    more_input: Mapping[str, Any] = field(default_factory=dict)  # of the spec

    @property
    def out(self) -> Path:
        return self.folder / "answers"

    def at(self, name: str) -> str:
        return f"{self.bucket or self.folder}/{name}"

    def write_input(
        self, ids: Sequence[str], questions: Sequence[str], pictures: Sequence[bytes | None] | Sequence[str]
    ) -> None:
        kind = pa.string() if isinstance(pictures[0], str) else pa.binary()
        table = pa.table({"id": list(ids), "question": list(questions), "image": pa.array(pictures, kind)})
        place = locate(self.at("rows.parquet"))
        pq.write_table(table, place.path, filesystem=place.filesystem, row_group_size=2000)

    def spec(self, mode: str = "error") -> JobSpec:
        return JobSpec.from_dict(
            {
                "input": {
                    "path": self.at("rows.parquet"),
                    "id_column": "id",
                    "image_columns": "image",
                    "keep_columns": [],
                    **self.more_input,
                },
                "prompt": {"template": "{question}"},
                "model": {"path": "builtin:noop"},
                "output": {"path": self.at("answers"), "mode": mode},
            }
        )

    def run(
        self,
        ids: Sequence[str],
        change: Change = lambda position: {},
        *,
        part_rows: int = 50,
        stop_after: int | None = None,
        mode: str = "error",
        error: BaseException | None = None,
    ) -> None:
        """Commits a result for each row; `change` replaces fields of one. Ends early where it is told to."""
        spec, source, _ = open_job(self.spec(mode))
        schema = output_schema(source.id_field.type, source.kept, spec.has_questions)
        run = Run.open(spec, source)
        try:
            with run:
                self._commit(run, schema, ids, change, part_rows, stop_after)
                if error is not None:
                    raise error
        except Exception as raised:
            if raised is not error:
                raise

    def _commit(
        self, run: Run, schema: pa.Schema, ids: Sequence[str], change: Change, part_rows: int, stop_after: int | None
    ) -> None:
        run.begin()
        writer = PartWriter(locate(self.at("answers")), schema, run.number)
        numbers = [row for row, is_left in enumerate(run.work.remaining.is_left) if is_left][:stop_after]
        for start in range(0, len(numbers), part_rows):
            rows = [result(n, ids[n], **change(n)) for n in numbers[start : start + part_rows]]
            for receipt in Receipt.of_table(writer(pa.Table.from_pylist(rows, result_schema(schema)))):
                run.add(receipt)
        if stop_after is None:
            run.finish()


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(tmp_path)


@dataclass(frozen=True)
class Browser:
    """A real browser without a window."""

    program: str
    profile: Path

    def dom(self, page: Path, fragment: str = "") -> str:
        """The document after its scripts have run."""
        done = subprocess.run(
            [
                self.program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--virtual-time-budget=1000",
                f"--user-data-dir={self.profile}",
                "--dump-dom",
                f"{page.as_uri()}{fragment}",
            ],
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        )
        return done.stdout


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    program = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(_BROWSERS)} is installed (Debian: apt-get install chromium)")
    return Browser(program, tmp_path_factory.mktemp("browser"))
