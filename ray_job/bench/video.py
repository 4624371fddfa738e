"""Frames of videos a second: looked up as a job does, and by plain PyAV in the same run.

    python -m ray_job bench video --seconds 60

A video of so many seconds is made, H.264 at 640 × 360 with a key frame every two seconds. Plain PyAV decodes all of it
in this process and converts the frames that are wanted to RGB; ours asks the isolated process for the same frames. Then
the videos are planned. Figures are in `bench/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_job.bench.engine import commit
from ray_job.spec import JobSpec, LimitsSpec, VideoSpec

_WIDTH, _HEIGHT, _FRAMES_PER_S, _KEY_S = 640, 360, 25, 2
_PROCESSES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
_EVERY_S = (1 / _FRAMES_PER_S, 1.0, 10.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(prog="python -m ray_job bench video", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="of the video (%(default)s)")
    parser.add_argument("--videos", type=int, default=20, metavar="N", help="to plan (%(default)s)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "0.mp4"
        write_video(file, arguments.seconds)
        result: dict[str, Any] = {"mib": round(file.stat().st_size / 2**20, 2)}
        for every_s in _EVERY_S:
            result |= _measured(file, arguments.seconds, every_s)
        for number in range(1, arguments.videos):
            (file.parent / f"{number}.mp4").hardlink_to(file)
        result |= _planned(file.parent)
    for key, value in result.items():
        print(f"{key:<32}{value}")
    print(json.dumps({"cpus": os.cpu_count(), "commit": commit(), "seconds": arguments.seconds, **result}))
    return 0


def write_video(file: Path, seconds: int) -> None:
    """A moving pattern with some noise, so that a frame takes as many bits as one of a camera."""
    import av

    noise = np.random.default_rng(0).integers(0, 24, (_HEIGHT, 2 * _WIDTH, 3), np.uint8)
    slope = np.linspace(0, 200, _WIDTH, dtype=np.uint8)[None, :, None]
    with av.open(str(file), "w") as output:
        stream: Any = output.add_stream("libx264", rate=_FRAMES_PER_S, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
        stream.gop_size = _KEY_S * _FRAMES_PER_S
        for number in range(seconds * _FRAMES_PER_S):
            shift = number % _WIDTH
            picture = np.roll(slope, shift, axis=1) + noise[:, shift : shift + _WIDTH]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, _FRAMES_PER_S)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def _measured(file: Path, length_s: int, every_s: float) -> dict[str, Any]:
    times = [round(number * every_s * 1e6) for number in range(round(length_s / every_s))]
    result: dict[str, Any] = {f"every {every_s:g} s: frames": len(times)}
    for name, look_up in (("PyAV", _plain), ("ours", _ours)):
        started_s, used_s = time.monotonic(), _cpu_s()
        assert look_up(file, times) == len(times)
        seconds, cpu_s = time.monotonic() - started_s, _cpu_s() - used_s
        result[f"every {every_s:g} s: {name} frames/s"] = round(len(times) / seconds, 1)
        result[f"every {every_s:g} s: {name} CPU s"] = round(cpu_s, 2)
    return result


def _cpu_s() -> float:
    """Of this process and of those that it has started and that have ended."""
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, _PROCESSES))


def _plain(file: Path, times_us: Sequence[int]) -> int:
    """Decodes all, on one thread as ours does, and converts the frames that are shown at these times."""
    import av

    wanted, found = list(times_us), 0
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        assert stream.time_base is not None
        for frame in container.decode(stream):
            time_us = round((frame.pts or 0) * stream.time_base * 1_000_000)
            if found < len(wanted) and time_us >= wanted[found]:
                assert frame.to_ndarray(format="rgb24").nbytes == _WIDTH * _HEIGHT * 3
                found += 1
    return found


def _ours(file: Path, times_us: Sequence[int]) -> int:
    from ray_job.inputs.video.process import VideoProcess

    process, found = VideoProcess(), 0
    try:
        with pa.OSFile(str(file)) as handle, process.video(handle, VideoSpec(), LimitsSpec()) as opened:
            for time_us in times_us:
                found += len(opened.frame(time_us).rgb) == _WIDTH * _HEIGHT * 3
    finally:
        process.close()
    return found


def _planned(folder: Path) -> dict[str, Any]:
    """Seconds to find the rows of a folder."""
    from ray_job.inputs.opening import open_source

    data = {"input": {"path": str(folder)}, "prompt": {"template": "What?"}, "output": {"path": str(folder / "out")}}
    started_s = time.monotonic()
    source = open_source(JobSpec.from_dict(data))
    return {"planned rows": source.num_rows, "planned_s": round(time.monotonic() - started_s, 2)}
