"""The whole job on a real local Ray: ids, pass-through columns, errors, parts and counts."""

from __future__ import annotations

import csv
import io
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_job import JobSpec, run_job
from ray_job.arrow.values import python_rows
from ray_job.demo.pictures import encode
from ray_job.demo.questions import make_split
from ray_job.demo.run import score_answers
from ray_job.errors import SpecError, TooManyRowErrors
from ray_job.inputs.formats.tables.parquet import ParquetSource
from ray_job.inputs.opening import open_source
from ray_job.inputs.source import Split
from ray_job.output.status import job_status
from ray_job.output.verify import verify
from ray_job.rows import RESULT_FIELDS
from ray_job.storage.places import locate

from .columns import columns

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.cluster, pytest.mark.timeout(180)]


def make_pictures(folder: Path, count: int, num_broken: int, seed: int) -> dict[str, dict[str, Any]]:
    """JPEG, PNG and WebP files in nested folders with metadata; some broken. Row id → what should come out."""
    rng = random.Random(seed)
    broken = set(rng.sample(range(count), num_broken))
    expected: dict[str, dict[str, Any]] = {}
    rows = []
    for index in range(count):
        kind = ("JPEG", "PNG", "WEBP")[index % 3]
        name = f"part-{index % 7}/{index:05}.{kind.lower()}"
        stream = io.BytesIO()
        size = (rng.randint(20, 60), rng.randint(20, 60))
        Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1])).save(stream, kind)
        data = stream.getvalue()
        if index in broken:
            data = (data[: len(data) // 2], b"", b"not a picture")[index % 3]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        rows.append({"file_name": name, "label": f"label {index}", "weight": index / 4})
        expected[name] = {"label": f"label {index}", "weight": index / 4, "broken": index in broken}
    with (folder / "metadata.csv").open("w", newline="") as stream_csv:
        writer = csv.DictWriter(stream_csv, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return expected


def to_parquet(folder: Path, expected: dict[str, dict[str, Any]], file: Path) -> None:
    """The same pictures inside one Parquet file, with an integer id."""
    rows = [
        {"key": number * 10, "image": {"bytes": (folder / name).read_bytes(), "path": name}, "label": row["label"]}
        for number, (name, row) in enumerate(expected.items())
    ]
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=300)


def job(path: Path, out: Path, **sections: Any) -> JobSpec:
    base: dict[str, Any] = {
        "input": {"path": str(path)},
        "prompt": {"template": "What is it?"},
        "model": {"path": "builtin:noop", "num_crops": 1},
        "output": {"path": str(out), "part_rows": 100},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section}
    return JobSpec.from_dict(base)


def output_rows(out: Path) -> list[dict[str, Any]]:
    folders = [out / name for name in ("data", "errors") if (out / name).exists()]
    return [row for folder in folders for row in pq.read_table(folder).to_pylist()]


@pytest.mark.slow
def test_every_type_that_parquet_holds_passes_through(tmp_path: Path) -> None:
    kept = columns()
    table = pa.table({"id": ["a", "b", "c"], **kept})
    for place in range(table.num_rows):
        pq.write_table(table.slice(place, 1), tmp_path / f"{place}.parquet")
    spec = job(tmp_path, tmp_path / "out", input={"id_column": "id", "image_columns": [], "keep_columns": list(kept)})
    report = run_job(spec)
    assert (report.totals.answered, report.totals.failed) == (3, 0)
    assert verify(locate(str(tmp_path / "out"))).problems == ()
    read = pa.concat_tables([pq.read_table(tmp_path / f"{place}.parquet") for place in range(3)])
    expected = {row["id"]: row for row in python_rows(read)}
    written = python_rows(pq.read_table(tmp_path / "out" / "data"))
    assert len(written) == 3
    for row in written:
        assert {name: row[name] for name in kept} == {name: expected[row["row_id"]][name] for name in kept}


class PartWatcher:
    """Counts the parts on disk while a job runs."""

    def __init__(self, out: Path) -> None:
        self.counts: list[int] = []
        self._out = out
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> PartWatcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            if not (self._out / "_SUCCESS").exists():
                self.counts.append(len(list((self._out / "data").glob("part-*.parquet"))))


def test_a_folder_and_a_table_of_mixed_pictures_come_back_whole(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    expected = make_pictures(folder, 1000, 13, seed=1)
    to_parquet(folder, expected, tmp_path / "rows.parquet")

    with PartWatcher(tmp_path / "a") as watcher:
        report = run_job(job(folder, tmp_path / "a", input={"column_types": {"weight": "float"}}), stream=io.StringIO())
    rows = output_rows(tmp_path / "a")
    assert (report.totals.answered, report.totals.failed) == (987, 13)
    assert {row["row_id"]: (row["label"], row["weight"], row["status"] == "error") for row in rows} == {
        name: (row["label"], row["weight"], row["broken"]) for name, row in expected.items()
    }
    assert len(rows) == 1000
    assert len(set(watcher.counts)) > 3, "parts should appear while the job runs"

    spec = job(tmp_path / "rows.parquet", tmp_path / "b", input={"id_column": "key"}, output={"part_rows": None})
    assert run_job(spec, stream=io.StringIO()).totals.parts >= 1000 / 32
    rows = output_rows(tmp_path / "b")
    assert sorted(row["row_id"] for row in rows) == [number * 10 for number in range(1000)]
    assert {row["row_id"] // 10 for row in rows if row["status"] == "error"} == {
        number for number, row in enumerate(expected.values()) if row["broken"]
    }
    schemas = {pq.read_schema(part).remove_metadata() for part in tmp_path.glob("b/*/part-*.parquet")}
    (schema,) = schemas
    assert schema.names == ["row_id", "label", *(field.name for field in RESULT_FIELDS)]
    assert schema.field("row_id").type == pa.int64()


@dataclass(frozen=True)
class HalfReadSource(ParquetSource):
    """Gives the second half of the rows once something of the first is in a committed part."""

    out: str = ""

    def read(self, split: Split, max_rows: int) -> Iterator[pa.Table]:
        deadline_s = time.monotonic() + 30
        for table in super().read(split, max_rows):
            while table.column("row_id")[0].as_py() >= 1000 and not list(Path(self.out).glob("data/part-*")):
                assert time.monotonic() < deadline_s, "nothing is written before all is read"
                time.sleep(0.05)
            yield table


def test_first_parts_are_committed_while_rows_are_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_half(spec: JobSpec) -> HalfReadSource:
        source = open_source(spec)
        return HalfReadSource(**{field.name: getattr(source, field.name) for field in fields(source)}, out=str(out))

    out = tmp_path / "out"
    table = pa.table({"id": range(2000), "question": ["what?"] * 2000})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=500)
    monkeypatch.setattr("ray_job.inputs.formats.tables.parquet_splits.SPLIT_ROWS", 500)
    monkeypatch.setattr("ray_job.stages.open_job.open_source", open_half)
    spec = job(tmp_path / "rows.parquet", out, input={"id_column": "id", "image_columns": []})
    assert run_job(spec, stream=io.StringIO()).totals.answered == 2000


def test_manifest_report_and_success_say_the_same(tmp_path: Path) -> None:
    expected = make_pictures(tmp_path / "in", 40, 4, seed=2)
    report = run_job(job(tmp_path / "in", tmp_path / "out"), stream=io.StringIO())
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    saved = json.loads((tmp_path / "out" / "_report.json").read_text())
    codes = Counter(row["error"]["code"] for row in output_rows(tmp_path / "out") if row["error"])
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert manifest["state"] == "completed"
    assert manifest["totals"] == saved["totals"] == json.loads(json.dumps(report.to_dict()["totals"]))
    assert manifest["totals"]["error_codes"] == codes
    assert manifest["input_rows"] == len(expected)
    assert 0 < saved["activity"]["first_rows_s"] <= saved["activity"]["last_actor_s"] < saved["elapsed_s"]
    assert manifest["spec"]["prompt"]["template"] == "What is it?"


def test_the_trained_model_answers_through_the_whole_job(tmp_path: Path) -> None:
    rows = []
    for example in make_split("test", 24, seed=7):
        images = [{"bytes": encode(picture, "PNG"), "path": None} for picture in example.pictures]
        rows += [
            {"image": images, "question": qa.question, "truth": qa.answer, "kind": qa.kind} for qa in example.questions
        ]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    types = {"image": pa.list_(image), "question": pa.string(), "truth": pa.string(), "kind": pa.string()}
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(list(types.items()))), tmp_path / "rows.parquet")
    spec = job(
        tmp_path / "rows.parquet",
        tmp_path / "out",
        prompt={"template": "{question}"},
        model={"path": "builtin:demo", "num_crops": None},
        generation={"max_new_tokens": 16},
    )
    run_job(spec, stream=io.StringIO())
    score = score_answers(output_rows(tmp_path / "out"))
    assert score.answerable == len(rows) > 80
    assert score.accuracy >= 0.95, score.by_kind


def test_questions_asked_of_every_row(tmp_path: Path) -> None:
    make_pictures(tmp_path / "in", 20, 2, seed=3)
    spec = job(tmp_path / "in", tmp_path / "out", prompt={"template": None, "questions": ["What?", "Where?", "Who?"]})
    report = run_job(spec, stream=io.StringIO())
    rows = output_rows(tmp_path / "out")
    asked = Counter((row["row_id"], row["question_index"]) for row in rows)
    assert max(asked.values()) == 1
    assert report.totals.rows == 20
    assert report.totals.answered == 18 * 3
    # A picture that cannot be read fails its row once: no question was asked.
    assert report.totals.failed == 2


def test_too_many_errors_end_the_job(tmp_path: Path) -> None:
    make_pictures(tmp_path / "in", 60, 30, seed=4)
    with pytest.raises(TooManyRowErrors, match=r"limits\.max_errors is 5"):
        run_job(job(tmp_path / "in", tmp_path / "out", limits={"max_errors": 5}), stream=io.StringIO())
    assert json.loads((tmp_path / "out" / "_manifest.json").read_text())["state"] == "failed"
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_workers_the_cluster_cannot_hold_are_refused_at_once(tmp_path: Path) -> None:
    make_pictures(tmp_path / "in", 3, 0, seed=5)
    with pytest.raises(SpecError) as caught:
        run_job(job(tmp_path / "in", tmp_path / "a", workers={"gpus_per_actor": 1}), stream=io.StringIO())
    assert "the cluster has 0" in str(caught.value)
    with pytest.raises(SpecError, match=r"workers\.cpus_per_actor: 2 × 1 CPUs leave none"):
        run_job(
            job(tmp_path / "in", tmp_path / "b", workers={"min_actors": 2, "cpus_per_actor": 1}), stream=io.StringIO()
        )
    # Before anything is begun: waiting for workers that never come would leave the output in progress.
    assert {path.name for path in tmp_path.glob("[ab]/*")} <= {".lock"}


@pytest.mark.slow
def test_actors_compute_as_the_manifest_says(tmp_path: Path) -> None:
    make_pictures(tmp_path / "in", 12, 0, seed=6)
    asked = {"model": {"path": "builtin:demo"}, "generation": {"max_new_tokens": 2}, "batching": {"block_rows": 4}}
    workers = {"min_actors": 2, "gpus_per_actor": 0, "threads": 3}
    report = run_job(job(tmp_path / "in", tmp_path / "a", workers=workers, **asked), stream=io.StringIO())
    placement = json.loads((tmp_path / "a" / "_manifest.json").read_text())["placement"]
    expected = {
        "device": "cpu",
        "dtype": "float32",
        "gpus_per_actor": 0,
        "threads_per_actor": [3],
        "engine": "continuous",
    }
    assert placement == report.placement == expected
    assert {done["threads"] for done in report.activity.actors.values()} == {3}
    for table in (report.table(), job_status(locate(str(tmp_path / "a"))).table()):
        assert "computed on cpu, float32, 3 threads an actor" in " ".join(table.split())
    again = run_job(job(tmp_path / "in", tmp_path / "a", output={"mode": "resume"}, **asked), stream=io.StringIO())
    assert again.placement == expected


def test_output_that_is_there_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    make_pictures(tmp_path / "in", 12, 0, seed=6)
    out = tmp_path / "out"
    run_job(job(tmp_path / "in", out), stream=io.StringIO())
    with pytest.raises(SpecError, match="is not empty"):
        run_job(job(tmp_path / "in", out), stream=io.StringIO())
    report = run_job(job(tmp_path / "in", out, output={"mode": "overwrite"}, input={"limit": 5}), stream=io.StringIO())
    assert report.totals.answered == len(output_rows(out)) == 5
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data").write_text("precious")
    with pytest.raises(SpecError, match="left alone"):
        run_job(job(tmp_path / "in", tmp_path / "mine", output={"mode": "overwrite"}), stream=io.StringIO())
    assert (tmp_path / "mine" / "data").read_text() == "precious"
