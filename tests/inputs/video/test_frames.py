"""The frame that a player shows at a time, found by its time stamp in every kind of file, by seeking or not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import psutil
import pyarrow as pa
import pytest

pytest.importorskip("av")

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.video.open_video import OpenVideo
from ray_job.inputs.video.process import VideoProcess
from ray_job.spec import LimitsSpec, VideoSpec

from . import files
from .files import TICKS, number_in, steady, video

pytestmark = pytest.mark.data
UNEVEN = [0, 40, 80, 1200, 1240, 3000, 3033, 3066, 7000, 7500, 9999]  # milliseconds
B_FRAMES = {"x264-params": "bframes=3:keyint=50:min-keyint=50:scenecut=0"}
MPEG2 = {"codec": "mpeg2video", "time_base": Fraction(1, 25)}
VP9 = {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}
KINDS = {
    "mp4": {"options": B_FRAMES, "sound": True},
    "fragments": {"container": {"movflags": "frag_keyframe+empty_moov"}},
    "matroska": {"format": "matroska", "options": B_FRAMES},
    "webm": {"format": "webm", **VP9},
    "mpegts": {"format": "mpegts", "options": B_FRAMES, "sound": True},
    "mpeg2": {"format": "mpegts", "max_b_frames": 2, **MPEG2},
    "hevc": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "avi": {"format": "avi", "codec": "mpeg4", "time_base": Fraction(1, 25)},
    "ten bits": {"options": {"profile": "high10"}, "pix_fmt": "yuv420p10le"},
}


@pytest.fixture(scope="module")
def process() -> Iterator[VideoProcess]:
    one = VideoProcess()
    yield one
    one.close()


def pixels(opened: OpenVideo, time_s: float) -> np.ndarray:
    frame = opened.frame(round(time_s * 1_000_000))
    return np.frombuffer(frame.rgb, np.uint8).reshape(frame.height, frame.width, 3)


def numbers(process: VideoProcess, data: bytes, times_s: list[float], **spec: object) -> list[int | str]:
    """The numbers painted into the frames at these times, or the code of an error."""
    with process.video(pa.BufferReader(data), VideoSpec.model_validate(spec), LimitsSpec()) as opened:
        return [number_or_code(opened, time_s) for time_s in times_s]


def number_or_code(opened: OpenVideo, time_s: float) -> int | str:
    try:
        return number_in(pixels(opened, time_s))
    except RowError as error:
        return str(error.code)


def shown(times_ms: list[int] | range, time_s: float) -> int:
    """Which frame a player shows."""
    return max([0, *(number for number, time in enumerate(times_ms) if time <= time_s * TICKS + 1e-6)])


@pytest.mark.parametrize("kind", KINDS)
def test_the_frame_at_a_time_is_found_in_any_order(process: VideoProcess, kind: str) -> None:
    data = video(steady(250), **KINDS[kind])
    times = [0, 0.04, 0.0399, 9.96, 5.0, 5.04, 5.001, 2.0, 9.9999, 0.2, 7.77]
    rest = random.Random(0).sample(range(250), 20)
    times += [number / 25 for number in rest]
    assert numbers(process, data, times) == [shown(steady(250), time) for time in times]


@pytest.mark.parametrize("kind", ["mp4", "matroska", "webm", "mpegts"])
def test_frames_of_a_variable_rate_are_found_by_their_time_stamps(process: VideoProcess, kind: str) -> None:
    data = video(UNEVEN, **KINDS[kind])
    times = [0, 0.04, 0.079, 0.08, 1.1999, 1.2, 2.9, 3.0, 3.04, 6.999, 7.0, 9.99, 9.999, 1.0]
    assert numbers(process, data, times) == [shown(UNEVEN, time) for time in times]


def test_a_jump_back_and_ahead_gives_the_same_pixels_as_decoding_on(process: VideoProcess) -> None:
    data = video(steady(250), **KINDS["mpegts"])
    with process.video(pa.BufferReader(data), VideoSpec(), LimitsSpec()) as opened:
        forward = [pixels(opened, number / 5).tobytes() for number in range(50)]
        backward = [pixels(opened, number / 5).tobytes() for number in reversed(range(50))]
    assert forward == backward[::-1]
    assert len(set(forward)) == 50


def test_beyond_the_end_is_an_error_that_says_where_it_ends(process: VideoProcess) -> None:
    with process.video(pa.BufferReader(video(steady(50))), VideoSpec(), LimitsSpec()) as opened:
        with pytest.raises(RowError, match=r"the frames end at 2\.0 s, before 2\.5 s") as caught:
            opened.frame(2_500_000)
        assert caught.value.code == ErrorCode.FRAME_UNREADABLE
        assert number_in(pixels(opened, 1.0)) == 25


def test_a_second_stream_is_chosen_by_its_number(process: VideoProcess) -> None:
    data = files.two_streams([steady(25), range(0, 1000, 100)])
    assert numbers(process, data, [0.5], stream=0) == [12]
    assert numbers(process, data, [0.5], stream=1) == [5]
    with pytest.raises(RowError, match=r"video\.stream is 2, and the file has 2 video streams"):
        numbers(process, data, [0.5], stream=2)


BAD = {
    "garbage": (np.random.default_rng(0).bytes(50_000), "video_unreadable", "no video that FFmpeg knows"),
    "html": (b"<html>404</html>", "video_unreadable", "no video that FFmpeg knows"),
    "sound": (files.only_sound(), "video_empty", "no video stream; the file holds audio"),
    "no moov": (video(steady(25))[:1000], "video_unreadable", "no video that FFmpeg knows"),
    "list": (b"ffconcat version 1.0\nfile /etc/passwd\n", "video_unreadable", "playlists"),
    "no times": (video(steady(25), format="h264"), "video_unreadable", "no time stamps; put it into a container"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_video_is_an_error_that_says_what(process: VideoProcess, kind: str) -> None:
    data, code, text = BAD[kind]
    with pytest.raises(RowError, match=text) as caught:
        numbers(process, data, [0.0])
    assert caught.value.code == code


def test_a_playlist_opens_no_other_file(process: VideoProcess, tmp_path: object) -> None:
    (tmp_path / "secret.ts").write_bytes(video(steady(25), format="mpegts"))  # type: ignore[operator]
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{tmp_path}/secret.ts\n#EXT-X-ENDLIST\n"
    with pytest.raises(RowError) as caught:
        numbers(process, text.encode(), [0.0])
    assert caught.value.code == ErrorCode.VIDEO_UNREADABLE


@pytest.mark.parametrize(
    "kind",
    ["mpegts", "mpeg2", "mp4", "matroska", "hevc"],
)
def test_no_damaged_frame_passes_for_a_good_one_where_ffmpeg_can_tell(process: VideoProcess, kind: str) -> None:
    """Without its marks, some frames of each of these show another number than their own."""
    container = {"container": {"movflags": "faststart"}} if kind in ("mp4", "hevc") else {}
    whole = video(steady(250), **{**KINDS[kind], **container}, size=(480, 320))
    data = files.damaged(whole, 0.4, 0.6)
    times = [number / 25 for number in range(250)]
    found = numbers(process, data, times)
    assert [number for number, seen in enumerate(found) if seen not in (number, "frame_unreadable")] == []
    assert 5 <= found.count("frame_unreadable") <= 200
    assert numbers(process, data, times[::-1]) == found[::-1], "seeking tells the same as decoding on"
    assert numbers(process, whole, times) == list(range(250))


def test_too_many_pixels_are_refused_before_they_are_decoded(process: VideoProcess) -> None:
    file = pa.BufferReader(video(steady(2)))
    with (
        pytest.raises(RowError, match=r"128 × 96 pixels; limits\.max_pixels is 1000"),
        process.video(file, VideoSpec(), LimitsSpec(max_pixels=1000)) as opened,
    ):
        opened.frame(0)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["mp4", "mpegts"])
def test_an_hour_is_read_in_bounded_memory_and_by_seeking(process: VideoProcess, kind: str) -> None:
    hour = range(0, 3_600_000, 500)
    data = video(hour, format=kind, options={"x264-params": "keyint=20:scenecut=0"})
    with process.video(pa.BufferReader(data), VideoSpec(), LimitsSpec()) as opened:
        assert process.pid is not None
        child = psutil.Process(process.pid)
        assert number_in(pixels(opened, 0)) == 0
        before, started_s = child.memory_info().rss, child.cpu_times().user
        for minute in range(1, 60):
            assert number_in(pixels(opened, minute * 60.1)) == int(minute * 120.2)
        sparse_s = child.cpu_times().user - started_s
        assert child.memory_info().rss - before < 32 * 2**20
        for second in range(0, 3600, 2):
            assert number_in(pixels(opened, second)) == 2 * second
        assert child.memory_info().rss - before < 32 * 2**20
        assert opened.survey(VideoSpec()).end_us == pytest.approx(3_600_000_000, abs=1_000_000)
    assert sparse_s < child.cpu_times().user - started_s - sparse_s, (
        "a frame a minute decodes less than one in two seconds"
    )
