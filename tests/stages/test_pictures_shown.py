"""What `input.pictures`, `background` and `truncated` do to rows: the same for running, planning and the gallery."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_job.inputs.source import iter_tables
from ray_job.plan import plan_job
from ray_job.rows import POSITION, SAMPLES
from ray_job.spec import JobSpec
from ray_job.stages.open_job import open_job
from ray_job.views.gallery.cards import CardMaker, Thumbnail


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def rotated(orientation: int, width: int = 900, height: int = 350) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.effect_noise((width, height), 80).convert("RGB"), "JPEG", exif=exif)


PICTURES = {
    "plain": rotated(1),
    "rotated": rotated(6),
    "rotated and cut short": rotated(6)[:-40],
    "clear": encoded(Image.new("RGBA", (400, 300), (0, 0, 0, 0))),
    "deep": encoded(Image.fromarray(np.linspace(0, 65535, 48_000).astype(np.uint16).reshape(160, 300))),
    "cut": encoded(Image.effect_noise((300, 200), 80))[:-500],
    "html": b"<html><body>404</body></html>",
    "late end": rotated(3) + b"\0" * 300,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"id": list(PICTURES), "image": list(PICTURES.values())}), tmp_path / "in.parquet")
    return tmp_path


def job(folder: Path, **rules: str) -> JobSpec:
    return JobSpec.from_dict(
        {
            "input": {"path": str(folder / "in.parquet"), "id_column": "id", **rules},
            "prompt": {"template": "What is it?"},
            "model": {"path": "builtin:noop", "num_crops": 16},
            "output": {"path": "unused"},
        }
    )


RULES = [{}, {"pictures": "as_stored"}, {"truncated": "accept"}, {"pictures": "as_stored", "truncated": "accept"}]


@pytest.mark.parametrize("rules", RULES)
def test_plan_counts_the_tokens_and_the_bad_rows_of_the_run(folder: Path, rules: dict[str, str]) -> None:
    spec = job(folder, **rules)
    _, source, preparer = open_job(spec)
    (table,) = iter_tables(source)
    prepared = preparer(table.add_column(0, POSITION, pa.array(range(table.num_rows), pa.int64())))
    samples = [row[0] for row in prepared.column(SAMPLES).to_pylist()]
    errors = [sample["error"]["code"] for sample in samples if sample["error"]]
    plan = plan_job(spec)
    assert plan.prompt_tokens == [len(sample["input_ids"]) for sample in samples if not sample["error"]]
    assert plan.bad_samples == {code: errors.count(code) for code in errors}
    assert errors.count("image_truncated") == (0 if rules.get("truncated") == "accept" else 2)
    assert errors.count("image_unreadable") == 1


def test_a_turned_picture_has_the_crops_of_its_upright_form(folder: Path) -> None:
    rows = {}
    for pictures in ("as_shown", "as_stored"):
        _, source, preparer = open_job(job(folder, pictures=pictures))
        (table,) = iter_tables(source)
        rows[pictures] = {row["row_id"]: preparer.row(row) for row in preparer.values(table)}
    wide, tall = (row.pictures[0]["arrays"][0]["shape"][1::-1] for row in _both(rows, "rotated"))
    assert wide == tall[::-1]
    assert wide[0] > wide[1]
    upright, stored = (len(row.samples[0]["input_ids"]) for row in _both(rows, "rotated")[::-1])
    assert upright != stored, "tall crops have more line ends"


def _both(rows: dict[str, Any], name: str) -> list[Any]:
    """The row as stored, and as shown."""
    return [rows["as_stored"][name], rows["as_shown"][name]]


def test_the_gallery_shows_what_the_model_sees(folder: Path) -> None:
    def thumbnails(**rules: str) -> dict[str, Any]:
        spec, source, preparer = open_job(job(folder, **rules))
        (table,) = iter_tables(source)
        maker = CardMaker(spec, source)
        return {row["row_id"]: maker._pictures(row)[0][0] for row in preparer.values(table)}

    def colour(thumbnail: Thumbnail) -> Any:
        return Image.open(BytesIO(thumbnail.data)).convert("RGB").getpixel((5, 5))

    shown, stored = thumbnails(background="#0000ff", truncated="accept"), thumbnails(pictures="as_stored")
    assert (shown["rotated"].width, shown["rotated"].height) == (350, 900)
    assert (stored["rotated"].width, stored["rotated"].height) == (900, 350)
    assert colour(shown["clear"])[2] > 240
    assert colour(stored["clear"]) == (0, 0, 0)
    assert isinstance(shown["cut"], Thumbnail)
    assert "too early" in stored["cut"]
    assert "HTML page" in shown["html"]


def test_the_same_bytes_read_otherwise_are_another_picture_to_an_engine_that_stays(folder: Path) -> None:
    digests = {}
    for background in ("white", "#fff", "red"):
        _, source, preparer = open_job(job(folder, background=background))
        (table,) = iter_tables(source)
        row = preparer.values(table)[0]
        digests[background] = preparer.row(row).pictures[0]["digest"]
        assert preparer.row(row, headers_only=True).pictures[0]["digest"] == digests[background]
    assert digests["white"] == digests["#fff"] != digests["red"]
