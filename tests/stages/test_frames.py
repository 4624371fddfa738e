"""Frames of videos on their way to the model: decoded where a row is prepared, and counted in a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av")

from ray_job.inputs.source import iter_tables
from ray_job.models.phi3_vision.processor import PIXELS
from ray_job.plan import plan_job
from ray_job.rows import arrays_of
from ray_job.stages.open_job import open_job
from ray_job.stages.prepare import row_values
from ray_job.views.gallery.cards import CardMaker, Thumbnail

from ..inputs.video.files import damaged, number_in, painted, steady, video
from .test_pages import codes, prepared, spec_of

pytestmark = pytest.mark.data
STILL = [painted(7)] * 60


def frames(folder: Path, **sections: Any) -> Any:
    return spec_of(folder, input={"format": "video"}, **sections)


def digests(pictures: list[dict[str, Any]]) -> list[bytes]:
    return [picture["digest"] for picture in pictures]


def test_every_frame_of_a_folder_is_prepared_or_an_error_of_its_row(tmp_path: Path) -> None:
    (tmp_path / "good.mp4").write_bytes(video(steady(75)))
    (tmp_path / "bad.mp4").write_bytes(b"x" * 1000)
    (tmp_path / "noise.ts").write_bytes(damaged(video(steady(250), format="mpegts", size=(480, 320)), 0.4, 0.6))
    found = prepared(frames(tmp_path))
    bad = codes(found)
    assert bad.pop("bad.mp4") == "video_unreadable"
    assert set(bad.values()) == {"frame_unreadable"}
    assert {name.split("#")[0] for name in bad} == {"noise.ts"}
    assert 1 <= len(bad) <= 4
    good = [name for name in found if name.startswith("good.mp4#")]
    assert good == ["good.mp4#0.0", "good.mp4#1.0", "good.mp4#2.0"]
    assert len({tuple(digests(found[name])) for name in good}) == 3
    later = "noise.ts#9.0"
    assert f"damaged at {next(iter(bad)).split('#')[1]} s" in found[next(iter(bad))]["message"]
    assert later not in bad


def test_equal_frames_have_one_digest_however_they_are_reached(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(video(steady(60), pictures=STILL, options={"qp": "0"}))
    (tmp_path / "b.mp4").write_bytes(video(steady(60), pictures=STILL, options={"qp": "0"}))
    found = prepared(frames(tmp_path))
    assert len(found) == 6
    assert len({tuple(digests(pictures)) for pictures in found.values()}) == 1


def test_a_clips_pictures_are_its_frames_in_order(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(video(steady(100)))
    alone = [digests(pictures)[0] for pictures in prepared(frames(tmp_path)).values()]
    clips = prepared(frames(tmp_path, video={"frames_per_row": 3, "stride": 1}))
    assert [digests(pictures) for pictures in clips.values()] == [alone[:3], alone[1:]]
    turned = spec_of(tmp_path, [{"id": "r", "image": {"path": "v.mp4#t=3.0", "bytes": None}}])
    assert digests(prepared(turned)["r"]) == alone[3:]


def test_videos_and_frames_of_a_picture_column_stand_beside_pictures(tmp_path: Path) -> None:
    data = video(steady(75))
    (tmp_path / "v.mp4").write_bytes(data)
    rows = [
        {"id": "frame", "image": {"path": "v.mp4#t=1.5", "bytes": None}},
        {"id": "whole", "image": {"path": "v.mp4", "bytes": None}},
        {"id": "bytes", "image": {"path": None, "bytes": data}},
        {"id": "beyond", "image": {"path": "v.mp4#t=60", "bytes": None}},
        {"id": "absent", "image": {"path": "w.mp4#t=0", "bytes": None}},
        {"id": "outside", "image": {"path": "../v.mp4#t=0", "bytes": None}},
        {"id": "web", "image": {"path": "https://example.com/v.mp4#t=0", "bytes": None}},
    ]
    found = prepared(spec_of(tmp_path, rows))
    assert codes(found) == {
        "beyond": "frame_unreadable",
        "absent": "image_missing",
        "outside": "image_forbidden",
        "web": "image_forbidden",
    }
    assert [len(found[name]) for name in ("frame", "whole", "bytes")] == [1, 3, 3]
    assert digests(found["whole"]) == digests(found["bytes"])
    few = prepared(spec_of(tmp_path, rows[1:2], video={"num_frames": 1}))
    assert digests(few["whole"]) == digests(found["frame"])
    many = prepared(spec_of(tmp_path, rows[1:2], video={"every_s": 0.04}))
    assert codes(many) == {"whole": "too_many_images"}


def test_what_the_model_gets_is_the_frame(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(video(steady(75), size=(336, 336)))
    (pictures,) = list(prepared(frames(tmp_path, model={"path": "builtin:noop", "num_crops": 1})).values())[2:]
    shown = arrays_of(pictures[0]["arrays"])[PIXELS]
    assert shown.dtype == np.uint8
    enlarged = Image.fromarray(shown.reshape(shown.shape[-3:])).resize((336, 336), Image.Resampling.NEAREST)
    assert number_in(np.asarray(enlarged)) == 50


def test_a_plan_counts_frames_and_their_tokens_as_the_job_has_them(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(video(steady(250), rotation=90))
    (tmp_path / "bad.mp4").write_bytes(b"x" * 1000)
    spec = frames(tmp_path)
    plan = plan_job(spec)
    assert (plan.rows, plan.pictures, plan.distinct_pictures, plan.videos) == (11, 10, 10, 1)
    assert plan.bad_samples == {"video_unreadable": 1}
    assert "videos           1, " in plan.table()
    _, source, preparer = open_job(spec)
    num_tokens = 0
    for table in iter_tables(source):
        for row in preparer.values(table):
            (sample,) = preparer.row(row).samples
            num_tokens += sum(token < 0 for token in sample["input_ids"] or ())
    assert plan.image_tokens == num_tokens > 0


def test_a_template_names_a_rows_time(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(video(steady(75)))
    spec = frames(tmp_path)
    spec = spec.model_copy(update={"prompt": spec.prompt.model_copy(update={"template": "At {start_s} s of {video}"})})
    _, source, preparer = open_job(spec)
    (table,) = iter_tables(source)
    rows = preparer.values(table)
    assert [(row["start_s"], row["video"]) for row in rows] == [(0.0, "v.mp4"), (1.0, "v.mp4"), (2.0, "v.mp4")]


def test_a_card_shows_the_frame(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(video(steady(75)))
    spec, source, _ = open_job(frames(tmp_path, video={"frames_per_row": 3}))
    (table,) = iter_tables(source)
    (row,) = row_values(table, source)
    pictures, num_more = CardMaker(spec, source)._pictures(row)
    assert num_more == 0
    assert [isinstance(picture, Thumbnail) for picture in pictures] == [True] * 3
