"""The demo's folder: made anew where a demo made it, and left alone where none did."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_job import JobSpec
from ray_job.demo.pictures import COLOURS, draw
from ray_job.demo.questions import make_split
from ray_job.demo.run import make_inputs
from ray_job.demo.stored import stored
from ray_job.errors import SpecError
from ray_job.inputs.pictures.decode import decode
from ray_job.inputs.source import iter_tables
from ray_job.spec import LimitsSpec
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


def test_pictures_stored_in_any_way_show_what_was_drawn() -> None:
    ways = set()
    for number, example in enumerate(make_split("demo", 60)):
        for scene in example.scenes:
            _, data = stored(scene, number, needs_colour=False)
            image = Image.open(BytesIO(data))
            ways.add((image.mode, image.getexif().get(0x0112)))
            drawn, seen = draw(scene), decode(data, LimitsSpec())
            assert seen.size == drawn.size
            # Grey in place of colour, white in place of nearly white, and lossy codecs: the light stays.
            differences = np.asarray(seen.convert("L")).astype(int) - np.asarray(drawn.convert("L"))
            assert np.median(abs(differences)) <= 48
            assert abs(differences).max() <= 90
    assert {("RGB", None), ("RGBA", None), ("I;16", None)} < ways
    assert {("RGB", orientation) for orientation in range(2, 9)} < ways


def test_no_question_about_colours_is_asked_of_grey(tmp_path: Path) -> None:
    make_inputs(tmp_path / "demo", 60, seed=0)
    grey = 0
    for row in pq.read_table(tmp_path / "demo" / "questions.parquet").to_pylist():
        if row["broken"] is not None:
            continue
        files = [(tmp_path / "demo" / path).read_bytes() for path in row["images"] if not path.endswith(".pdf")]
        if any(Image.open(BytesIO(file)).mode == "I;16" for file in files):
            grey += 1
            assert not {*COLOURS, "colour"} & set(re.findall(r"\w+", f"{row['question']} {row['truth']}"))
    assert grey > 0


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
