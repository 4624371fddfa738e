"""Folders of videos: every chosen frame and every file is a row, whatever lies beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("av")

from ray_job.errors import SpecError
from ray_job.inputs.identity import input_identity
from ray_job.inputs.video.source import num_videos
from ray_job.rows import READ_ERROR

from ..conftest import ids_of, opened, rows_of
from . import files
from .files import painted, steady, video

pytestmark = pytest.mark.data
FASTSTART = {"movflags": "faststart"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("in")
    (root / "a").mkdir()
    (root / "a" / "three.mp4").write_bytes(video(steady(75)))
    (root / "b.mkv").write_bytes(video([0, 1500, 1540], format="matroska"))
    (root / "bad.mp4").write_bytes(b"<html>404</html>")
    (root / "cut.mp4").write_bytes(video(steady(250), container=FASTSTART)[:-6000])
    (root / "nothing.mov").touch()
    (root / "sound.mp4").write_bytes(files.only_sound())
    (root / "stream").write_bytes(video(steady(26), format="mpegts"))
    return root


def videos(folder: Path | str, template: str = "What?", **spec: Any) -> Any:
    return opened(folder, template=template, input=spec.pop("input", {}), video=spec)


def codes_of(source: Any) -> dict[str, str]:
    return {row["row_id"]: row[READ_ERROR]["code"] for row in rows_of(source) if row[READ_ERROR] is not None}


A = ["a/three.mp4#0.0", "a/three.mp4#1.0", "a/three.mp4#2.0"]
BAD = {"bad.mp4": "video_unreadable", "nothing.mov": "video_empty", "sound.mp4": "video_empty"}


def test_a_second_is_a_row_and_each_file_without_a_frame_an_error(folder: Path) -> None:
    source = videos(folder)
    cut = [name for name in ids_of(source) if name.startswith("cut.mp4#")]
    assert ids_of(source) == [
        *A,
        "b.mkv#0.0",
        "b.mkv#1.0",
        "bad.mp4",
        *cut,
        "nothing.mov",
        "sound.mp4",
        "stream#0.0",
        "stream#1.0",
    ]
    assert codes_of(source) == {**BAD, cut[-1]: "video_truncated"}
    assert [field.name for field in source.kept] == ["video", "start_s", "end_s", "frame_indices"]
    row = rows_of(source)[2]
    assert row["image"] == {"bytes": None, "path": "a/three.mp4#t=2.0"}
    assert (row["video"], row["start_s"], row["end_s"], row["frame_indices"]) == ("a/three.mp4", 2.0, 3.0, [2])
    assert [row["end_s"] for row in rows_of(source)[3:5]] == [1.0, 1.58]
    assert num_videos(source) == 4


def test_a_file_that_breaks_off_gives_what_is_there_and_one_error_that_says_where(folder: Path) -> None:
    rows = rows_of(videos(folder / "cut.mp4"))
    *good, last = rows
    assert [row["row_id"] for row in good] == [f"cut.mp4#{second}.0" for second in range(len(good))]
    assert 3 <= len(good) <= 9
    assert last["row_id"] == f"cut.mp4#{last['start_s']}"
    assert len(good) - 1 < last["start_s"] <= len(good)
    assert f"breaks off at {last['start_s']} s" in last[READ_ERROR]["message"]


@pytest.mark.parametrize("kind", ["mp4", "matroska", "webm"])
def test_a_cut_file_ends_where_its_frames_end(tmp_path: Path, kind: str) -> None:
    codec = {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}} if kind == "webm" else {}
    whole = video(steady(250), format=kind, container=FASTSTART if kind == "mp4" else {}, sound=kind == "webm", **codec)
    (tmp_path / "v").write_bytes(whole)
    assert ids_of(videos(tmp_path, every_s=2)) == [f"v#{second}.0" for second in (0, 2, 4, 6, 8)]
    (tmp_path / "v").write_bytes(whole[: len(whole) // 2])
    *good, last = rows_of(videos(tmp_path, every_s=2))
    assert [row["row_id"] for row in good] == [f"v#{second}.0" for second in range(0, 2 * len(good), 2)]
    assert 2 * len(good) - 2 < last["start_s"] < 9
    assert last[READ_ERROR]["code"] == "video_truncated"


def test_frames_are_spread_evenly_by_time_not_by_number(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(video([0, 40, 80, 120, 160, 4000, 8000]))
    source = videos(tmp_path, num_frames=4)
    ends = [row["end_s"] for row in rows_of(source)]
    assert ids_of(source) == [f"v.mp4#{ends[-1] * share / 8:g}" for share in (1, 3, 5, 7)]
    assert ends[:3] == [row["start_s"] for row in rows_of(source)[1:]]


def test_key_frames_are_rows(tmp_path: Path) -> None:
    options = {"x264-params": "keyint=10:min-keyint=10:scenecut=0:bframes=2"}
    (tmp_path / "v.mp4").write_bytes(video(steady(45), options=options))
    assert ids_of(videos(tmp_path, keyframes=True)) == [f"v.mp4#{time}" for time in ("0.0", "0.4", "0.8", "1.2", "1.6")]


def test_scenes_begin_where_the_picture_changes(tmp_path: Path) -> None:
    pictures = [painted(0)] * 30 + [255 - painted(0)] * 20 + [painted(0)] * 10
    (tmp_path / "v.mp4").write_bytes(video(steady(60), pictures=pictures))
    assert ids_of(videos(tmp_path, scene=0.1)) == ["v.mp4#0.0", "v.mp4#1.2", "v.mp4#2.0"]
    assert [row["end_s"] for row in rows_of(videos(tmp_path, scene=0.1))] == [1.2, 2.0, 2.4]


def test_a_clip_is_a_row_with_its_frames_as_pictures(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(video(steady(70)))  # 2.8 s
    source = videos(tmp_path, every_s=0.5, frames_per_row=3, stride=2)
    assert ids_of(source) == ["v.mp4#0.0", "v.mp4#1.0", "v.mp4#2.0"]
    rows = rows_of(source)
    assert [row["frame_indices"] for row in rows] == [[0, 1, 2], [2, 3, 4], [4, 5]]
    assert [(row["start_s"], row["end_s"]) for row in rows] == [(0.0, 1.5), (1.0, 2.5), (2.0, 2.8)]
    assert [picture["path"] for picture in rows[1]["image"]] == ["v.mp4#t=1.0", "v.mp4#t=1.5", "v.mp4#t=2.0"]
    whole = rows_of(videos(tmp_path, num_frames=4, frames_per_row=4))
    assert [(row["row_id"], len(row["image"])) for row in whole] == [("v.mp4#0.35", 4)]
    apart = rows_of(videos(tmp_path, every_s=0.5, frames_per_row=1, stride=3))
    assert [row["frame_indices"] for row in apart] == [[0], [3]]


def test_a_video_is_cut_into_splits_that_hold_every_row(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(video(steady(250)))
    source = videos(tmp_path, every_s=0.01, frames_per_row=4, stride=2)
    expected = [[*range(start, min(start + 4, 1000))] for start in range(0, 998, 2)]
    assert [row["frame_indices"] for row in rows_of(source)] == expected
    assert [split.num_rows for split in source.splits] == [256, 243]
    ends = [row["end_s"] for row in rows_of(source)]
    assert ends == [min(10.0, (start + 4) / 100) for start in range(0, 998, 2)]
    assert ids_of(videos(tmp_path, every_s=0.01, input={"limit": 2})) == ["v.mp4#0.0", "v.mp4#0.01"]


def test_a_video_whose_beginning_is_damaged_has_all_its_rows(tmp_path: Path) -> None:
    whole = video(steady(250), format="mpegts", size=(480, 320))
    (tmp_path / "v.ts").write_bytes(files.damaged(whole, 0.01, 0.1))
    source = videos(tmp_path)
    assert len(ids_of(source)) in (9, 10)
    assert codes_of(source) == {}


def test_a_video_with_too_many_frames_is_one_error(folder: Path) -> None:
    assert codes_of(videos(folder / "a", max_frames=2)) == {"three.mp4": "video_unreadable"}


def test_another_file_or_choice_is_another_input(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(video(steady(25)))
    before = input_identity(videos(tmp_path))
    assert before == input_identity(videos(tmp_path))
    assert before != input_identity(videos(tmp_path, every_s=0.5))
    (tmp_path / "v.mp4").write_bytes(video(steady(25), size=(256, 128)))
    assert before != input_identity(videos(tmp_path))


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"every_s": 1, "scene": 0.1}, "every_s and scene each choose the frames"),
        ({"stride": 2}, "stride goes with frames_per_row"),
        ({"frames_per_row": 100}, r"video\.frames_per_row is 100 but limits\.max_images is"),
        ({"input": {"id_column": "video"}}, r"input\.id_column"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(folder: Path, spec: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        videos(folder, **spec)


def test_a_bucket_is_planned_from_pieces_of_its_files(s3: Callable[[str, bytes], str]) -> None:
    s3("clips/v.mp4", video(steady(75)))
    s3("clips/w.mkv", video(steady(26), format="matroska"))
    assert ids_of(videos("s3://pictures/clips")) == ["v.mp4#0.0", "v.mp4#1.0", "v.mp4#2.0", "w.mkv#0.0", "w.mkv#1.0"]
