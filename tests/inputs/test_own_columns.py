"""Columns named as the output's own: kept under another name, and an output is the next job's input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_job.cli import main
from ray_job.output.verify import verify
from ray_job.plan import plan_job
from ray_job.prompts.conversation import Conversations
from ray_job.prompts.parts import Text
from ray_job.rows import OUTPUT_COLUMNS, PARSED, QUESTION_INDEX, kept_names
from ray_job.spec import JobSpec
from ray_job.stages.open_job import open_job
from ray_job.storage.places import locate
from tests.jobs_here import run_here

from .conftest import opened, rows_of, write_lines

OWN = sorted({*OUTPUT_COLUMNS, QUESTION_INDEX, PARSED, "_rj_position", "_rj_read_error", "_rj_anything"})


def _spec(path: Path, out: Path, **sections: dict[str, Any]) -> JobSpec:
    data = {"input": {"path": str(path)}, "model": {"path": "builtin:noop"}, "output": {"path": str(out)}}
    for name, section in sections.items():
        data[name] = {**data.get(name, {}), **section}
    return JobSpec.from_dict(data)


def _table(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("*/part-*.parquet"))])


def _prompts(path: Path, template: str, **sections: dict[str, Any]) -> list[str]:
    """What a template makes of each row."""
    spec = _spec(path, path.parent / "out", prompt={"template": template}, **sections)
    spec, source, preparer = open_job(spec)
    asked = []
    for table in source.read(source.splits[0], 100):
        for row in preparer.values(table):
            ((message,),) = Conversations(spec.prompt, ()).of_row(row, 0)
            asked.append("".join(part.text for part in message.parts if isinstance(part, Text)))
    return asked


def test_other_names_are_free_and_follow_from_the_names_alone() -> None:
    assert kept_names(["a", "status"]) == {"a": "a", "status": "input_status"}
    assert kept_names(["status", "input_status"]) == {"status": "input_status_2", "input_status": "input_status"}
    names = ["status", "input_status", "input_status_2", "_rj_x"]
    assert list(kept_names(names).values()) == ["input_status_3", "input_status", "input_status_2", "input__rj_x"]


@pytest.mark.parametrize("name", OWN)
def test_a_column_of_our_name_is_kept_and_can_be_asked_about(tmp_path: Path, name: str) -> None:
    path, out = tmp_path / "rows.parquet", tmp_path / "out"
    pq.write_table(pa.table({"id": ["a", "b"], name: ["mine", "yours"], "n": [1, 2]}), path)
    sections: dict[str, dict[str, Any]] = {"input": {"id_column": "id"}}
    assert _prompts(path, f"{{{name}}}, {{n}}", **sections) == ["mine, 1", "yours, 2"]
    assert _prompts(path, f"{{{name}}}", input={"id_column": "id", "keep_columns": ["n"]}) == ["mine", "yours"]
    run_here(_spec(path, out, prompt={"template": f"{{{name}}}"}, **sections))
    rows = _table(out).sort_by("row_id").to_pylist()
    assert [(row["row_id"], row[f"input_{name}"], row["n"], row["status"]) for row in rows] == [
        ("a", "mine", 1, "ok"), ("b", "yours", 2, "ok"),
    ]  # fmt: skip
    assert verify(locate(str(out))).is_good


def test_the_new_names_are_said_before_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"status": ["success"], "prompt": ["?"]}), path)
    spec = _spec(path, tmp_path / "out")
    assert "column 'status' is 'input_status' in the output" in plan_job(spec).table()
    (tmp_path / "job.yaml").write_text(json.dumps(spec.model_dump(mode="json", exclude_unset=True)))
    assert main(["validate", str(tmp_path / "job.yaml")]) == 0
    assert "column 'status': in the output it is 'input_status'" in capsys.readouterr().out


def test_an_output_is_the_next_jobs_input_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": [7, 8], "prompt": ["one?", "two?"]}), path)
    run_here(_spec(path, tmp_path / "1", input={"id_column": "id"}, output={"format": "openai_batch"}))
    for number in (1, 2):
        template = {"template": "Is this right: {generated_text} ({status})"}
        run_here(_spec(tmp_path / str(number), tmp_path / str(number + 1), prompt=template))
    first, last = _table(tmp_path / "1").sort_by("row_id"), _table(tmp_path / "3").sort_by("row_id")
    assert last.column("row_id").to_pylist() == [7, 8], "rows keep their ids and the ids their type"
    assert last.column("prompt").to_pylist() == ["one?", "two?"]
    assert last.column("input_generated_text").to_pylist() == first.column("generated_text").to_pylist()
    assert {"input_generated_text_2", "input_status", "input_status_2"} < set(last.column_names)
    assert len(set(last.column_names)) == last.num_columns


def test_structs_of_an_output_are_kept_on_request(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"usage": [{"prompt_tokens": 3}], "error": [{"code": "x"}], "prompt": ["?"]}), path)
    run_here(_spec(path, tmp_path / "out", input={"keep_columns": ["usage", "error"]}))
    (row,) = _table(tmp_path / "out").to_pylist()
    assert (row["input_usage"], row["input_error"], row["error"]) == ({"prompt_tokens": 3}, {"code": "x"}, None)
    assert row["usage"]["prompt_tokens"] > 0


def test_lines_and_metadata_have_such_columns_too(tmp_path: Path, png: bytes) -> None:
    lines = write_lines(tmp_path / "a.jsonl", [{"id": 1, "row_id": 5, "status": "new", "prompt": "?"}])
    (row,) = rows_of(opened(lines, template="{row_id}", input={"id_column": "id"}))
    assert (row["row_id"], row["_rj_user_row_id"], row["status"]) == (1, 5, "new")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "p.png").write_bytes(png)
    write_lines(photos / "metadata.jsonl", [{"file_name": "p.png", "status": "new", "row_id": "x"}])
    run_here(_spec(photos, tmp_path / "out", prompt={"template": "{status}"}))
    (row,) = _table(tmp_path / "out").to_pylist()
    assert (row["row_id"], row["input_status"], row["input_row_id"]) == ("p.png", "new", "x")
