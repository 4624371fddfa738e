"""The demo's folder: made anew where a demo made it, and left alone where none did."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_job import JobSpec
from ray_job.demo.run import make_inputs
from ray_job.errors import SpecError
from ray_job.inputs.source import iter_tables
from ray_job.stages.open_job import open_job


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


def test_a_few_pictures_are_scanned_pages_and_can_be_read(tmp_path: Path) -> None:
    make_inputs(tmp_path, 40, seed=0)
    _, source, preparer = open_job(JobSpec.from_yaml(tmp_path / "job.yaml"))
    scans = 0
    for table in iter_tables(source):
        for row, is_broken in zip(preparer.values(table), table.column("broken").is_valid().to_pylist(), strict=True):
            if any(path.endswith(".pdf") for path in row["images"]) and not is_broken:
                scans += 1
                assert [sample["error"] for sample in preparer.row(row).samples] == [None]
    assert scans > 3
