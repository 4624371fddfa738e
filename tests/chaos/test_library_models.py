"""Whole jobs over library models: three families, each with another form of input, killed in the middle and resumed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.models.auto.families import write

from .harness import Job, Machines, call, run_though_killed

NUM_ROWS = 96
pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]


def pictures(folder: Path) -> list[Path]:
    """A third as many as rows: every one is asked about again."""
    folder.mkdir()
    files = [folder / f"{number:03}.png" for number in range(NUM_ROWS // 3)]
    for number, file in enumerate(files):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize([(100, 60), (60, 110), (90, 90)][number % 3]).save(file)
    return files


def questions() -> list[str]:
    rng, words = random.Random(5), ("what", "is", "the", "red", "thing", "left", "of", "it")
    return [" ".join(rng.choices(words, k=rng.randint(2, 9))) for _ in range(NUM_ROWS)]


def image_folder(folder: Path) -> dict[str, Any]:
    """Three questions about each file of a folder."""
    pictures(folder / "pictures")
    return {"input": {"path": str(folder / "pictures")}, "prompt": {"questions": questions()[:3]}}


def parquet(folder: Path) -> dict[str, Any]:
    """Bytes of pictures in a table."""
    files = pictures(folder / "pictures")
    images = [{"bytes": files[number % len(files)].read_bytes(), "path": None} for number in range(NUM_ROWS)]
    table = pa.table({"id": [f"id-{number}" for number in range(NUM_ROWS)], "image": images, "question": questions()})
    pq.write_table(table, folder / "rows.parquet", row_group_size=16)
    return {"input": {"path": str(folder / "rows.parquet"), "id_column": "id"}}


def json_lines(folder: Path) -> dict[str, Any]:
    """Chat messages with paths of pictures."""
    files = pictures(folder / "pictures")
    rows = [
        {"id": number, "images": [f"pictures/{files[number % len(files)].name}"], "question": question}
        for number, question in enumerate(questions())
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"input": {"path": str(folder / "rows.jsonl"), "id_column": "id"}}


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "llava_next": image_folder,
    "smolvlm": parquet,
    "qwen2_5_vl": json_lines,
}


def rows_of(job: Job) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """By id and question; fails if one comes twice."""
    rows = [row for part in sorted(job.out.glob("*/part-*.parquet")) for row in pq.read_table(part).to_pylist()]
    columns = ("status", "generated_text", "finish_reason", "usage")
    found = {(row["row_id"], row.get("question_index")): tuple(row[name] for name in columns) for row in rows}
    assert len(found) == len(rows), "a row came out twice"
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_job_over_a_library_model_is_killed_and_resumed(name: str, machines: Machines, tmp_path: Path) -> None:
    write(name, tmp_path / "model")
    spec = {
        **CASES[name](tmp_path),
        "model": {"path": str(tmp_path / "model")},
        "generation": {"max_new_tokens": 24},
        "batching": {"block_rows": 4, "blocks_per_actor": 2, "max_batch_rows": 8, "max_batch_tokens": 4000},
        "workers": {"cpus_per_actor": 0.5, "threads": 1},
        "output": {"path": str(tmp_path / "continuous"), "part_rows": 8},
    }
    quiet = Job(tmp_path, json.loads(json.dumps(spec)), machines.env)
    quiet.spec["output"]["path"] = str(tmp_path / "static")
    quiet.spec["batching"]["engine"] = "static"
    code, text = quiet.run()
    assert code == 0, text
    expected = rows_of(quiet)
    assert len(expected) == NUM_ROWS
    assert {status for status, *_ in expected.values()} == {"ok"}
    assert len({text for _, text, *_ in expected.values()}) > NUM_ROWS // 3
    assert quiet.manifest()["placement"]["engine"] == "static"

    job = Job(tmp_path, spec, machines.env)
    run_though_killed(job, machines, NUM_ROWS)
    assert rows_of(job) == expected
    assert job.manifest()["placement"]["engine"] == "continuous"
    assert "engine_reason" not in job.manifest()["placement"]
    code, text = call("verify", str(job.out))
    assert code == 0, text


def test_a_model_that_does_not_fit_runs_in_static_batches_and_the_report_says_why(
    machines: Machines, tmp_path: Path
) -> None:
    write("llava", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["text_config"]["rope_parameters"] = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 64,
        "factor": 4.0,
    }
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    spec = {
        **parquet(tmp_path),
        "model": {"path": str(tmp_path / "model")},
        "generation": {"max_new_tokens": 4},
        "workers": {"cpus_per_actor": 0.5, "threads": 1},
        "output": {"path": str(tmp_path / "out")},
    }
    spec["input"]["limit"] = 12
    job = Job(tmp_path, spec, machines.env)
    code, text = job.run()
    assert code == 0, text
    placement = job.manifest()["placement"]
    assert placement["engine"] == "static"
    assert "longrope" in placement["engine_reason"]
    assert text.count(f"the static engine runs: {placement['engine_reason']}") == 1
    assert f"static: {placement['engine_reason']}" in call("status", str(job.out))[1]
    report = json.loads((job.out / "_report.json").read_text())
    assert report["placement"]["engine_reason"] == placement["engine_reason"]

    job.spec["batching"] = {"engine": "continuous"}
    job.spec["output"]["path"] = str(tmp_path / "refused")
    code, text = job.run()
    assert (code, "batching.engine: " in text, "set it to auto or static" in text) == (1, True, True), text
    assert job.num_committed() == 0
