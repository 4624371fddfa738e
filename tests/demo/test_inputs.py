"""The demo's folder: made anew where a demo made it, and left alone where none did."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_job import JobSpec
from ray_job.demo.run import make_inputs
from ray_job.errors import SpecError


def test_a_demo_that_was_cut_off_can_be_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "demo-run"
    make_inputs(folder, 12, seed=0)
    (folder / "job.yaml").unlink()
    num_rows, num_broken = make_inputs(folder, 12, seed=1)
    assert 0 < num_broken < num_rows


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "_manifest.json").write_text("{}")
    with pytest.raises(SpecError, match="was not made by a demo; choose another folder with --out"):
        make_inputs(tmp_path, 12, seed=0)
    assert (tmp_path / "answers" / "_manifest.json").exists()


def test_the_job_means_the_same_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_inputs(Path("demo-run"), 12, seed=0)
    spec = JobSpec.from_yaml(tmp_path / "demo-run" / "job.yaml")
    assert spec.input.path == (str(tmp_path / "demo-run" / "questions.parquet"),)
    assert spec.output.path == str(tmp_path / "demo-run" / "answers")
