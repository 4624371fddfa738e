"""Seeded mutations of pictures, JSONL lines and Parquet files: an error row or a clear message, never a crash.

`RAY_JOB_FUZZ=20` makes it twenty times as many.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_job import JobSpec
from ray_job.errors import ErrorCode, RayJobError
from ray_job.inputs.source import iter_tables
from ray_job.rows import POSITION, ROW_ID, SAMPLES
from ray_job.stages.open_job import open_job
from tests.memory import forget_peak, now_mib, peak_mib

from .conftest import encoded, noise

TIMES = int(os.environ.get("RAY_JOB_FUZZ", "1"))
MEMORY_MIB = 400
SPECIAL = (
    b"\x00",
    b"\xff",
    b'"',
    b"{",
    b"[",
    b"\\",
    b"\n",
    b"\xed\xa0\x80",
    b"1e999",
    b"-9223372036854775809",
    b"null",
)


@pytest.fixture(autouse=True)
def _bounded_memory() -> Iterator[None]:
    forget_peak()
    before = now_mib()
    yield
    assert peak_mib() - before < MEMORY_MIB


def mutated(data: bytes, dice: random.Random) -> bytes:
    """A few bytes replaced, inserted, removed, repeated or moved, or the end cut off; always another text."""
    changed = bytearray(data)
    while bytes(changed) == data:
        for _ in range(dice.choice((1, 1, 2, 8))):
            place = dice.randrange(len(changed) + 1)
            stop = min(len(changed), place + dice.choice((1, 1, 4, 64)))
            kind = dice.randrange(6)
            if kind == 0 and place < len(changed):
                changed[place] = dice.randrange(256)
            elif kind == 1:
                changed[place:place] = dice.choice(SPECIAL)
            elif kind == 2:
                del changed[place:stop]
            elif kind == 3:
                changed[place:place] = changed[place:stop] * dice.choice((1, 50))
            elif kind == 4:
                changed[place:stop] = dice.randbytes(stop - place)
            elif dice.random() < 0.3:
                del changed[place:]
    return bytes(changed)


def outcome(path: Path, **sections: Any) -> Counter[str]:
    """What reading and preparing an input gives: rows by their error's code, or the name of the fatal error."""
    data = {
        "input": {"path": str(path), **sections.pop("input", {})},
        "model": {"path": "builtin:noop", "num_crops": 1},
        "output": {"path": "unused"},
        **sections,
    }
    counts: Counter[str] = Counter()
    try:
        _, source, preparer = open_job(JobSpec.from_dict(data))
        for table in iter_tables(source, 64):
            prepared = preparer(table.add_column(0, POSITION, pa.array(range(table.num_rows), pa.int64())))
            assert prepared.column(ROW_ID).null_count == 0
            for samples in prepared.column(SAMPLES).to_pylist():
                assert samples
                for sample in samples:
                    code = sample["error"]["code"] if sample["error"] else "ok"
                    assert code == "ok" or (ErrorCode(code) and sample["error"]["message"])
                    counts[code] += 1
        assert counts.total() >= source.num_rows
    except RayJobError as error:
        fatal = error
    else:
        return counts
    assert path.name in str(fatal)
    assert len(str(fatal)) < 3000
    assert fatal.exit_code == 2
    return Counter({type(fatal).__name__: 1})


def test_damaged_pictures_are_rows_of_their_own(tmp_path: Path) -> None:
    dice = random.Random(1)
    kinds: dict[str, Callable[[], bytes]] = {
        "JPEG": lambda: encoded(noise(24, 18), "JPEG", progressive=dice.random() < 0.5),
        "PNG": lambda: encoded(noise(24, 18).convert(dice.choice(("RGB", "P", "LA")))),
        "WEBP": lambda: encoded(noise(24, 18), "WEBP", lossless=dice.random() < 0.5),
        "GIF": lambda: encoded(noise(24, 18), "GIF", save_all=True, append_images=[noise(24, 18, seed=1)]),
        "BMP": lambda: encoded(noise(24, 18), "BMP"),
        "TIFF": lambda: encoded(noise(24, 18), "TIFF", compression=dice.choice((None, "tiff_lzw", "jpeg"))),
    }
    pictures = [mutated(make(), dice) for make in kinds.values() for _ in range(40 * TIMES)]
    good = encoded(noise(24, 18))
    rows = [data for damaged in pictures for data in (damaged, good)]
    ids = list(range(len(rows)))
    pq.write_table(pa.table({"id": ids, "image": rows, "question": ["what?"] * len(rows)}), tmp_path / "in.parquet")
    counts = outcome(tmp_path / "in.parquet", input={"id_column": "id"})
    assert counts.total() == len(rows) == 2 * 240 * TIMES
    assert counts["ok"] >= len(pictures), "the pictures between the damaged ones are as good as ever"
    assert {"ok", "image_truncated", "image_unreadable"} <= set(counts)


def test_damaged_lines_are_rows_of_their_own(tmp_path: Path) -> None:
    dice = random.Random(2)
    body = {"model": "m", "messages": [{"role": "user", "content": "what?"}], "max_tokens": 5}
    batch = {"custom_id": "r", "method": "POST", "url": "/v1/chat/completions", "body": body}
    seen: Counter[str] = Counter()
    num_lines = 0
    for number in range(20 * TIMES):
        lines = []
        for row in range(10):
            line = json.dumps({**batch, "custom_id": f"{number}-{row}"}).encode()
            lines += [line, mutated(line, dice).replace(b"\n", b" ")]
        num_lines += len(lines) // 2
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(b"\n".join(lines))
        counts = outcome(path)
        seen += counts
        assert counts["ok"] >= 10 or counts.total() == 1, counts
    assert num_lines >= 200
    assert {"ok", "row_malformed"} <= set(seen)


def test_damaged_parquet_files_are_named_or_read(tmp_path: Path) -> None:
    dice = random.Random(3)
    tables = []
    for options in ({}, {"compression": "zstd", "row_group_size": 4}, {"use_dictionary": False, "version": "1.0"}):
        stream = BytesIO()
        rows = [{"id": f"r{row}", "image": encoded(noise(8, 6)), "question": f"what is {row}?"} for row in range(12)]
        pq.write_table(pa.Table.from_pylist(rows), stream, **options)
        tables.append(stream.getvalue())
    seen: Counter[str] = Counter()
    for number in range(150 * TIMES):
        data = tables[number % len(tables)]
        if number % 2:
            place = len(data) - dice.randrange(1, 900)  # the footer, where most can go wrong
            data = data[:place] + mutated(data[place : place + 40], dice) + data[place + 40 :]
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(mutated(data, dice))
        counts = outcome(path, input={"id_column": "id"})
        seen += counts
    assert {"ok", "InputError"} <= set(seen)
