"""The column `parsed` in an output: one type for answered, failed, resumed and retried rows, read by every reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from ray_job.errors import FingerprintMismatch
from ray_job.inputs.opening import open_source
from ray_job.output.manifest import Manifest
from ray_job.output.status import job_status
from ray_job.rows import OUTPUT_COLUMNS
from ray_job.spec import JobSpec
from ray_job.structured.arrow_types import JSON_TEXT, arrow_type
from ray_job.views.html.write import write_report
from tests.jobs_here import run_here

from .quiet_job import QuietJob
from .test_empty_parts import FAILURE

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blue"]},
        "count": {"type": "integer"},
        "sizes": {"type": "array", "items": {"type": "number"}},
        "more": {"type": "object"},
    },
    "required": ["colour", "count"],
}
STORED = pa.struct(
    [
        pa.field("colour", pa.string(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
        pa.field("sizes", pa.list_(pa.field("element", pa.float64(), nullable=False))),
        pa.field("more", JSON_TEXT),
    ]
)
FORM: dict[str, Any] = {"generation": {"structured_outputs": {"json": SCHEMA}}}


def value(row: int) -> dict[str, Any]:
    return {"colour": ("red", "blue")[row % 2], "count": row, "sizes": [row / 2] if row else None, "more": '{"a":1}'}


def answer(row: int) -> dict[str, Any]:
    """Every third row fails; the fourth is cut, the seventh has a form of its own."""
    if row % 3 == 0:
        return FAILURE
    if row in (4, 7):
        return {"finish_reason": "length" if row == 4 else "stop", "generated_text": '{"colour":'}
    return {"generated_text": json.dumps(value(row)), "parsed": value(row)}


@pytest.fixture
def job(tmp_path: Path) -> QuietJob:
    job = QuietJob(tmp_path, FORM)
    job.write_input(10)
    return job


def parsed(job: QuietJob, folder: str = "data") -> dict[str, Any]:
    rows = ds.dataset(job.out / folder).to_table(["row_id", "parsed"]).to_pylist()
    return {row["row_id"]: row["parsed"] for row in rows}


def test_good_and_failed_rows_have_one_type(job: QuietJob) -> None:
    job.run(change=answer)
    assert {pq.read_schema(part).field("parsed").type for part in (*job.parts(), *job.parts("errors"))} == {STORED}
    assert parsed(job) == {f"row-{row}": None if row in (4, 7) else value(row) for row in (1, 2, 4, 5, 7, 8)}
    assert parsed(job, "errors") == {f"row-{row}": None for row in (0, 3, 6, 9)}
    manifest = Manifest.read(job.root)
    assert manifest is not None
    assert manifest.fields["output.columns.parsed"] == str(STORED) == str(arrow_type(SCHEMA))
    assert job.verified().answered == 6


def test_without_rows_of_a_kind_the_type_is_there(job: QuietJob) -> None:
    job.run(change=lambda row: FAILURE)
    assert pq.read_schema(job.parts()[0]).field("parsed").type == STORED


def test_answers_without_a_value_are_counted_and_told(job: QuietJob) -> None:
    report = job.run(change=answer)
    assert report.totals.unparsed == job_status(job.root).unparsed == {"length": 1, "stop": 1}
    for table in (report.table(), job_status(job.root).table()):
        assert "  cut" in table
        assert "1, so not valid JSON and without `parsed`: raise generation.max_new_tokens" in table
        assert "1: their text is not JSON of the type of `parsed`" in table
    page = Path(write_report(str(job.out)).path).read_text()
    assert "Cut: 1, so not valid JSON" in page
    assert "colour: blue" in page


def test_a_job_without_a_schema_has_no_such_column_and_no_such_line(tmp_path: Path) -> None:
    job = QuietJob(tmp_path, {"generation": {"structured_outputs": {"choice": ["yes", "no"]}}})
    job.write_input(2)
    report = job.run()
    assert "parsed" not in pq.read_schema(job.parts()[0]).names
    assert "parsed" not in report.table()


def test_any_object_is_text(tmp_path: Path) -> None:
    job = QuietJob(tmp_path, {"generation": {"structured_outputs": {"json": True}}})
    job.write_input(2)
    job.run(change=lambda row: {"parsed": '{"a": 1}'})
    assert pq.read_schema(job.parts()[0]).field("parsed").type == JSON_TEXT
    assert parsed(job) == {"row-0": '{"a": 1}', "row-1": '{"a": 1}'}
    job.verified()


@pytest.mark.usefixtures("local_ray")  # what is new is found there
def test_resume_retry_and_append_keep_type_and_count(job: QuietJob) -> None:
    with job.opened() as run:
        job.commit(run, lambda row: answer(row) if row < 5 else FAILURE)
    report = job.run("resume", output={"retry_failed": True}, change=answer)
    assert report.totals.unparsed == {"length": 1, "stop": 1}
    assert report.totals.failed == 4
    job.write_input(12)
    report = job.run("append", change=lambda row: answer(row % 10))
    assert report.totals.answered == 7
    assert {pq.read_schema(part).field("parsed").type for part in (*job.parts(), *job.parts("errors"))} == {STORED}
    assert job.verified().rows == 12


def test_a_rewritten_part_keeps_values_and_count(job: QuietJob) -> None:
    job.run(change=answer, part_rows=10)
    report = job.run("resume", output={"retry_failed": True}, change=lambda row: answer(1) if row < 4 else answer(row))
    assert report.totals.unparsed == {"length": 1, "stop": 1}
    assert parsed(job)["row-8"] == value(8)
    assert parsed(job, "errors") == {"row-6": None, "row-9": None}
    job.verified()


def test_another_schema_is_another_job(job: QuietJob) -> None:
    job.run(change=answer)
    other = {"structured_outputs": {"json": {**SCHEMA, "required": ["colour"]}}}
    with pytest.raises(FingerprintMismatch, match="structured_outputs"):
        job.run("resume", generation=other)
    job.run("overwrite", generation=other)
    assert pq.read_schema(job.parts()[0]).field("parsed").type.field("count").nullable


def test_an_inputs_own_column_of_the_name_is_kept_under_another(job: QuietJob) -> None:
    job.write_input(3, parsed=["a", "b", "c"])
    run_here(job.spec(model={"path": "builtin:noop"}))
    table = ds.dataset(job.out / "data").to_table().sort_by("row_id")
    assert table.column("input_parsed").to_pylist() == ["a", "b", "c"]
    assert table.column("parsed").to_pylist() == [None] * 3, "an empty text is no JSON"


def test_an_output_is_the_next_jobs_input(job: QuietJob, tmp_path: Path) -> None:
    job.run(change=answer)
    spec = JobSpec.from_dict(
        {
            "input": {"path": str(job.out), "keep_columns": ["parsed"], "image_columns": []},
            "prompt": {"template": "{parsed}"},
            "model": {"path": "builtin:noop"},
            "output": {"path": str(tmp_path / "next")},
        }
    )
    assert open_source(spec).num_rows == 10
    run_here(spec)
    table = ds.dataset(tmp_path / "next").to_table()
    kept = dict(zip(table.column("row_id").to_pylist(), table.column("input_parsed").to_pylist(), strict=True))
    assert kept == {**parsed(job), **parsed(job, "errors")}
    assert set(table.column_names) == {*OUTPUT_COLUMNS, "input_parsed"}


def test_batch_files_have_the_text(job: QuietJob) -> None:
    job.run(change=answer, output={"format": "openai_batch"})
    line = json.loads((job.out / "_openai" / "results.jsonl").read_text().splitlines()[0])
    message = line["response"]["body"]["choices"][0]["message"]
    assert message == {"role": "assistant", "content": json.dumps(value(1)), "refusal": None}


@pytest.mark.data
def test_every_reader_knows_the_fields(job: QuietJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    duckdb, polars = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    job.run(change=lambda row: {} if row == 9 else {"parsed": value(row)}, part_rows=3)
    job.out.rename(tmp_path / "answers")
    monkeypatch.chdir(tmp_path)
    expected = [("blue", 4.0), ("red", 4.0), (None, None)]
    counted = "SELECT parsed.colour, avg(parsed.count) FROM 'answers/data/*.parquet' GROUP BY 1 ORDER BY 1 NULLS LAST"
    assert duckdb.sql(counted).fetchall() == expected
    assert duckdb.sql("SELECT sum(parsed.more.a::int) FROM 'answers/data/*.parquet'").fetchall() == [(9,)]
    fields = polars.read_parquet("answers/data").unnest("parsed")
    means = fields.group_by("colour").agg(polars.col("count").mean()).sort("colour", nulls_last=True)
    assert means.rows() == expected
    assert fields["more"].ext.storage().str.json_path_match("$.a").drop_nulls().to_list() == ["1"] * 9
    found = pandas.read_parquet("answers/data")["parsed"].dropna()
    assert sorted((row["colour"], row["count"]) for row in found) == sorted(
        (("red", "blue")[n % 2], n) for n in range(9)
    )
    rows = datasets.load_dataset("parquet", data_dir="answers/data", split="train", cache_dir=str(tmp_path / "hf"))
    assert [row["parsed"] and row["parsed"]["count"] for row in rows.sort("row_id")] == [*range(9), None]
    assert rows.sort("row_id")[1]["parsed"] == {"colour": "blue", "count": 1, "sizes": [0.5], "more": {"a": 1}}
