"""A job over 200 video files, broken ones among them, killed in the middle: it goes on frame by frame."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest

from ray_job.bench.video import write_video
from tests.inputs.video.files import damaged, only_sound, steady, video

from .harness import Job, Machines, call, make_job

pytest.importorskip("av")
pytestmark = [pytest.mark.data, pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]
NUM_VIDEOS, SECONDS, BROKEN_EVERY = 200, 8, 10
NUM_COMMITTED = 300
FASTSTART = {"movflags": "faststart"}


def write_videos(folder: Path) -> None:
    """Every tenth is cut short, damaged, of sound alone, or garbage."""
    folder.mkdir()
    whole = video(steady(SECONDS * 25), container=FASTSTART)
    broken = [
        whole[: len(whole) * 2 // 3],
        damaged(video(steady(SECONDS * 25), format="mpegts", size=(480, 320)), 0.4, 0.6),
        only_sound(),
        b"<html>404</html>",
    ]
    for number in range(NUM_VIDEOS):
        kind, is_whole = divmod(number, BROKEN_EVERY)
        data = whole if is_whole else broken[kind % len(broken)]
        (folder / f"{number:03}.mp4").write_bytes(data)


def video_job(folder: Path, machines: Machines | None) -> Job:
    job = make_job(folder / "job", machines)
    write_videos(folder / "videos")
    job.spec["input"] = {"path": str(folder / "videos"), "format": "video"}
    job.spec["prompt"] = {"template": "What happens at {start_s} s of {video}?"}
    job.spec["output"]["part_rows"] = 64
    return job


def test_a_killed_driver_loses_and_doubles_no_frame(tmp_path: Path, machines: Machines) -> None:
    job = video_job(tmp_path, machines)
    expected = job.expected()
    videos = {row_id.split("#")[0] for row_id in expected}
    assert videos == {f"{number:03}.mp4" for number in range(NUM_VIDEOS)}, "every file is accounted for"
    codes = Counter(code for _, _, code in expected.values() if code is not None)
    assert codes.keys() == {"video_truncated", "frame_unreadable", "video_empty", "video_unreadable"}
    assert (codes["video_truncated"], codes["video_empty"], codes["video_unreadable"]) == (5, 5, 5)
    driver = job.start()
    driver.wait_until(lambda: job.num_committed() >= NUM_COMMITTED)
    committed = job.num_committed()
    driver.send(signal.SIGKILL)
    driver.wait()
    code, text = job.run("--mode", "resume", "--set", "limits.max_error_rate=1")
    assert code in (0, 3), text
    assert job.manifest()["already_done"] >= committed >= NUM_COMMITTED
    assert job.answers() == expected
    assert call("verify", str(job.out))[0] == 0


def test_the_measured_video_is_one(tmp_path: Path) -> None:
    """The benchmark's own file has a frame at each of its seconds."""
    write_video(tmp_path / "v.mp4", 2)
    job = make_job(tmp_path / "job")
    job.spec["input"] = {"path": str(tmp_path / "v.mp4")}
    job.spec["prompt"] = {"template": "what?"}
    assert list(job.expected()) == ["v.mp4#0.0", "v.mp4#1.0"]
