"""Real videos, written by FFmpeg through PyAV: each frame has its number painted in, as blocks that are read back."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

NUM_BITS, COLUMNS, CELL = 16, 8, 16
SIZE = (COLUMNS * CELL, 96)  # width and height; the upper third holds the bits
TICKS = 1000  # a second


def painted(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A grey picture, height × width × 3, with a number in black and white blocks above, and a bar that moves below."""
    width, height = size
    picture = np.full((height, width, 3), 128, np.uint8)
    for bit in range(NUM_BITS):
        row, column = divmod(bit, COLUMNS)
        picture[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = 255 * (number >> bit & 1)
    left = number * 4 % (width - CELL)
    picture[2 * CELL + 8 :, left : left + CELL] = (200, 60, 30)
    return picture


def number_in(picture: np.ndarray) -> int:
    """The inverse of `painted`."""
    cells = picture[: 2 * CELL, : COLUMNS * CELL].reshape(2, CELL, COLUMNS, CELL, 3)
    means = cells[:, 4:-4, :, 4:-4].mean(axis=(1, 3, 4)).ravel()
    return sum(1 << bit for bit, mean in enumerate(means) if mean > 128)


def video(
    times: Iterable[int],
    *,
    format: str = "mp4",
    codec: str = "libx264",
    pictures: Sequence[np.ndarray] | None = None,
    size: tuple[int, int] = SIZE,
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    rotation: float | None = None,
    sound: bool = False,
    picture_format: str = "rgb24",
    **attributes: Any,
) -> bytes:
    """A video whose k-th frame is shown from `times[k]` on, in milliseconds.

    Args:
        times: of the frames; each shows its number unless `pictures` are given.
        format: of the container.
        codec: an encoder.
        pictures: height × width × 3, one for each time.
        size: width and height.
        pix_fmt: of what is encoded.
        gop: most frames from a key frame to the next.
        options: of the encoder.
        container: of the muxer.
        rotation: counterclockwise, that a player must apply.
        sound: with a second stream of silence.
        picture_format: FFmpeg's name of what the pictures are.
        attributes: of the encoder's context.
    """
    import av

    with tempfile.NamedTemporaryFile() as file:  # some muxers read again what they wrote
        with av.open(file.name, "w", format=format, options=container or {}) as output:
            stream: Any = output.add_stream(codec, rate=25, options=options or {})
            stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, pix_fmt, gop
            stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
            stream.thread_count = 1
            for name, value in attributes.items():
                setattr(stream.codec_context, name, value)
            if rotation is not None:
                stream.set_display_rotation(rotation)
            audio: Any = output.add_stream("libopus" if format == "webm" else "aac", rate=48000) if sound else None
            last = 0
            for number, time in enumerate(times):
                picture = painted(number, size) if pictures is None else pictures[number]
                frame = av.VideoFrame.from_ndarray(picture, format=picture_format)
                frame.pts, frame.time_base = time, Fraction(1, TICKS)
                output.mux(stream.encode(frame))
                last = time
            output.mux(stream.encode())
            if audio is not None:
                _add_silence(output, audio, last)
        return Path(file.name).read_bytes()


def _add_silence(output: Any, stream: Any, until: int) -> None:
    import av

    for start in range(0, 48 * until, 960):
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 960), np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        output.mux(stream.encode(frame))
    output.mux(stream.encode())


def steady(num_frames: int, frames_per_s: int = 25) -> range:
    """Times of a constant rate."""
    return range(0, num_frames * TICKS // frames_per_s, TICKS // frames_per_s)


def only_sound() -> bytes:
    """A file with a sound and no picture."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        _add_silence(output, output.add_stream("aac", rate=48000), 1000)
    return buffer.getvalue()


def damaged(data: bytes, start: float, stop: float) -> bytes:
    """The same with every eighth kilobyte between two places, given as shares of it, replaced by noise."""
    noise = np.random.default_rng(0)
    changed = bytearray(data)
    for place in range(int(len(data) * start), int(len(data) * stop), 8192):
        changed[place : place + 1024] = noise.bytes(len(changed[place : place + 1024]))
    return bytes(changed)


def write(folder: Path, **videos: bytes) -> Path:
    """Files by their names, with `__` for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in videos.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def two_streams(times: Sequence[Iterable[int]]) -> bytes:
    """Two videos in one file, the numbers of each counted by itself."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        streams: list[Any] = [output.add_stream("libx264", rate=25) for _ in times]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt, stream.thread_count = *SIZE, "yuv420p", 1
            stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
        for stream, own in zip(streams, times, strict=True):
            for number, time in enumerate(own):
                frame = av.VideoFrame.from_ndarray(painted(number), format="rgb24")
                frame.pts, frame.time_base = time, Fraction(1, TICKS)
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
    return buffer.getvalue()
