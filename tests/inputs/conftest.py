"""Pictures, specs and a bucket for the tests of reading."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import fs

from ray_job.inputs.opening import open_source
from ray_job.inputs.source import Source, iter_tables
from ray_job.spec import JobSpec

BUCKET = "pictures"


def encoded(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    """The picture as a file's bytes."""
    buffer = BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def noise(width: int = 80, height: int = 60, seed: int = 0) -> Image.Image:
    """A picture no codec makes small."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def opened(path: Any, *, template: str | None = "Describe it.", **sections: dict[str, Any]) -> Source:
    """The source of a job over `path` (or paths)."""
    prompt = sections.pop("prompt", {"template": template} if template is not None else {})
    paths = [str(item) for item in path] if isinstance(path, list) else str(path)
    data = {"input": {"path": paths, **sections.pop("input", {})}, "output": {"path": "out"}, "prompt": prompt}
    return open_source(JobSpec.from_dict({**data, **sections}))


def rows_of(source: Source, max_rows: int = 3) -> list[dict[str, Any]]:
    """All rows, after checking what every table must be."""
    tables = list(iter_tables(source, max_rows))
    assert all(table.schema == source.schema and 0 < table.num_rows <= max_rows for table in tables)
    rows: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
    assert len(rows) == source.num_rows
    return rows


def ids_of(source: Source, max_rows: int = 3) -> list[Any]:
    """The row ids, in order."""
    return [row["row_id"] for row in rows_of(source, max_rows)]


def write_lines(path: Path, lines: list[Any]) -> Path:
    """A JSONL file; texts are written as they are."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


@pytest.fixture(scope="session")
def png() -> bytes:
    """A small picture."""
    return encoded(noise(8, 6))


@pytest.fixture
def s3(s3_store: fs.S3FileSystem) -> Callable[[str, bytes], str]:
    """Puts an object (key, content) into the bucket and returns its URI."""
    s3_store.create_dir(BUCKET)

    def put(key: str, content: bytes) -> str:
        with s3_store.open_output_stream(f"{BUCKET}/{key}", compression=None) as stream:
            stream.write(content)
        return f"s3://{BUCKET}/{key}"

    return put
