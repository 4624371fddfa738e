"""`<image>` that stays text although a row has pictures: counted, and said what to set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ray_job import JobSpec
from ray_job.cli import main
from ray_job.plan import plan_job


def _spec(folder: Path, rows: list[dict[str, Any]], **prompt: Any) -> dict[str, Any]:
    Image.new("RGB", (8, 6)).save(folder / "p.png")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"image": ["p.png"], **row}) + "\n" for row in rows))
    return {
        "input": {"path": str(folder / "rows.jsonl")},
        "output": {"path": str(folder / "out")},
        "model": {"path": "builtin:noop"},
        "prompt": prompt,
    }


@pytest.mark.parametrize(
    ("rows", "prompt", "expected"),
    [
        ([{"prompt": "<image> x"}, {"prompt": "none"}, {"prompt": "<image> or <image>"}], {}, ("rows.jsonl#3", 2, 1)),
        ([{"prompt": "<image>", "image": ["p.png"] * 2}], {}, ("rows.jsonl#1", 1, 2)),
        ([{"prompt": "<image>", "image": []}], {}, None),
        ([{"prompt": "<image> <image>"}], {"image_tag": ""}, None),
        ([{"prompt": "<image>"}], {"template": "<|image_1|> {prompt}"}, ("rows.jsonl#1", 1, 1)),
        ([{"x": 1}], {"template": "an <image> of <image>"}, ("rows.jsonl#1", 2, 1)),
        ([{"q": ["a", "<image><image>"]}], {"questions_column": "q"}, ("rows.jsonl#1", 2, 1)),
        ([{"messages": [{"role": "user", "content": "<image>"}]}], {}, None),
        ([{"messages": [{"role": "user", "content": "<image><image>"}]}], {}, ("rows.jsonl#1", 2, 1)),
        ([{"prompt": "<image><image>", "image": ["missing.png"]}], {}, None),
    ],
)
def test_such_rows_are_counted(
    tmp_path: Path, rows: list[dict[str, Any]], prompt: dict[str, Any], expected: tuple[str, int, int] | None
) -> None:
    plan = plan_job(JobSpec.from_dict(_spec(tmp_path, rows, **prompt)))
    if expected is None:
        assert plan.hint is None
        return
    row_id, num_tags, num_pictures = expected
    assert plan.hint is not None
    assert plan.hint.startswith(f"1 of {len(rows)} rows show their pictures elsewhere than at <image>")
    assert f"(e.g. {row_id}: {num_tags} of them, {num_pictures} shown)" in plan.hint
    assert "set prompt.image_tag: '<image>'" in plan.hint


def test_plan_and_validate_print_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "job.json"
    spec.write_text(json.dumps(_spec(tmp_path, [{"prompt": "<image><image>"}] * 300)))
    assert main(["plan", str(spec)]) == 0
    assert "hint: 300 of 300 rows show their pictures elsewhere" in capsys.readouterr().out
    assert main(["validate", str(spec)]) == 0
    assert "hint: 256 of the first 256 rows show their pictures elsewhere" in capsys.readouterr().out
