"""Rows of videos: a frame each, or a clip of several.

Only what headers and the last seconds say is read here. A row is called `clip.mp4#12.5` by the second it starts at, and
has the columns `video`, `start_s`, `end_s` and `frame_indices`. Its pictures are references such as `clip.mp4#t=12.5`,
which `stages/frames.py` decodes where the row is prepared: no frame travels, and long videos are decoded by several
workers. A video that cannot be opened is one row, called by its name, with an error; one that breaks off has one more
row, called by the second of its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice

import pyarrow as pa

from ray_job.errors import InputError, RowError, SpecError
from ray_job.inputs.columns import Found, choose_roles
from ray_job.inputs.files import InputFiles
from ray_job.inputs.pieces import grouped
from ray_job.inputs.source import IMAGE_TYPE, Source, Split
from ray_job.inputs.video.clock import US, shown_s
from ray_job.inputs.video.counting import Counted, Video, count_videos
from ray_job.inputs.video.references import frame_reference
from ray_job.redaction.logs import logger_of
from ray_job.spec import JobSpec, VideoSpec
from ray_job.storage.places import Location

IMAGE, FRAME_INDICES = "image", "frame_indices"
SPLIT_ROWS = 256
_ROW_BYTES = 512
_LOG = logger_of(__name__)


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring rows of one video."""

    video: Video
    num_rows: int
    times_us: Sequence[int] = ()  # of the frames of these rows
    first_frame: int = 0  # which of the video's chosen frames the first of them is
    end_us: int = 0  # when the last of them ends
    cut: RowError | None = None  # of the one row that says that the file breaks off


@dataclass(frozen=True, slots=True)
class VideoSplit(Split):
    """Rows of videos beside each other."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    video: Video
    times_us: Sequence[int]
    first_frame: int
    start_us: int | None
    end_us: int | None
    error: RowError | None


@dataclass(frozen=True)
class VideoSource(Source):
    """Rows of videos."""

    video: VideoSpec
    reference_root: Location | None  # set where pictures' paths start elsewhere: videos are then named in full

    def read(self, split: Split, max_rows: int) -> Iterator[pa.Table]:
        """See `Source.read`."""
        assert isinstance(split, VideoSplit)
        rows = islice((row for piece in split.pieces for row in self._rows(piece)), split.num_rows)
        while batch := list(islice(rows, max_rows)):
            yield self._table(batch)

    def _rows(self, piece: Piece) -> Iterator[_Row]:
        video, times = piece.video, piece.times_us
        if video.error is not None or piece.cut is not None:
            start_us = None if piece.cut is None else piece.end_us
            yield _Row(video, (), 0, start_us, None, video.error or piece.cut)
            return
        size, stride = _window(self.video)
        for start in range(0, piece.num_rows * stride, stride):
            shown = times[start : start + size]
            end_us = times[start + size] if start + size < len(times) else piece.end_us
            yield _Row(video, shown, piece.first_frame + start, shown[0], end_us, None)

    def _table(self, rows: Sequence[_Row]) -> pa.Table:
        values = {
            IMAGE: [self._pictures(row) for row in rows],
            "video": [row.video.name for row in rows],
            "start_s": [None if row.start_us is None else row.start_us / US for row in rows],
            "end_s": [None if row.end_us is None else row.end_us / US for row in rows],
            FRAME_INDICES: [list(range(row.first_frame, row.first_frame + len(row.times_us))) for row in rows],
        }
        names = [row.video.name for row in rows]
        ids = [
            name if row.start_us is None else f"{name}#{shown_s(row.start_us)}"
            for name, row in zip(names, rows, strict=True)
        ]
        arrays = [pa.array(values[field.name], field.type) for field in self.columns]
        return self.table([pa.array(ids, pa.string()), *arrays], [row.error for row in rows])

    def _pictures(self, row: _Row) -> object:
        name = row.video.name if self.reference_root is None else row.video.location.reference
        found = [{"bytes": None, "path": frame_reference(name, time_us)} for time_us in row.times_us]
        return found if self.video.frames_per_row is not None else next(iter(found), None)


def open_video(spec: JobSpec, found: InputFiles) -> VideoSource:
    """Counts the videos' frames and plans the splits.

    Raises:
        InputError: PyAV is missing, or no folder holds all inputs.
        SpecError: the spec does not fit the columns.
    """
    if find_spec("av") is None:
        raise InputError(
            f"{found.root} holds videos, and PyAV is missing: pip install 'ray_job[video]' on every machine"
        )
    found.check_image_root(spec.input)
    if spec.input.id_column is not None:
        raise SpecError(["input.id_column: a row of videos is called by its video and second; leave it out"])
    columns = _columns(spec.video)
    roles = choose_roles(spec, Found(columns, image_columns=(IMAGE,), also_kept=(FRAME_INDICES,)), "input")
    own = {"video": spec.video, "reference_root": None if spec.input.image_root is None else found.root}
    interlaced: list[str] = []
    with closing(count_videos(found.files, spec.video, spec.limits)) as videos:
        splits = _splits(_noting(videos, interlaced), spec.video, spec.input.limit)
        source = VideoSource.planned(spec, found, columns, roles, splits, **own)
    if interlaced:
        text = "%d of the videos are interlaced, e.g. %s: a frame shows both fields, as a comb where things move"
        _LOG.warning(text, len(interlaced), interlaced[0])
    return source


def _columns(spec: VideoSpec) -> pa.Schema:
    return pa.schema(
        [
            (IMAGE, IMAGE_TYPE if spec.frames_per_row is None else pa.list_(IMAGE_TYPE)),
            ("video", pa.string()),
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            (FRAME_INDICES, pa.list_(pa.int32())),
        ]
    )


def _window(spec: VideoSpec) -> tuple[int, int]:
    """Frames of a row, and from the start of one row to the next."""
    size = spec.frames_per_row or 1
    return size, spec.stride or size


def _noting(videos: Iterable[Counted], interlaced: list[str]) -> Iterator[Counted]:
    for counted in videos:
        if counted.is_interlaced:
            interlaced.append(counted.video.name)
        yield counted


def _splits(videos: Iterable[Counted], spec: VideoSpec, limit: int | None) -> Iterator[VideoSplit]:
    """The rows of all videos, or at least the first `limit`, in splits of SPLIT_ROWS at most."""
    pieces = (piece for counted in videos for piece in _pieces(counted, spec))
    return map(_split, grouped(pieces, SPLIT_ROWS, limit))


def _pieces(counted: Counted, spec: VideoSpec) -> Iterator[Piece]:
    """A video in pieces of SPLIT_ROWS rows at most; each holds only its own times."""
    video, times = counted.video, counted.times_us
    if video.error is not None:
        yield Piece(video, 1)
        return
    size, stride = _window(spec)
    # A last clip is begun only where it shows a frame that no clip before it did.
    num_rows = 1 + max(0, -(-(len(times) - size) // stride)) if stride <= size else -(-len(times) // stride)
    for start in range(0, num_rows, SPLIT_ROWS):
        rows = min(SPLIT_ROWS, num_rows - start)
        first, stop = start * stride, (start + rows - 1) * stride + size
        end_us = times[stop] if stop < len(times) else counted.end_us
        yield Piece(video, rows, times[first:stop], first, end_us)
    if counted.cut is not None:
        yield Piece(video, 1, end_us=counted.end_us, cut=counted.cut)


def _split(pieces: Sequence[Piece]) -> VideoSplit:
    num_rows = sum(piece.num_rows for piece in pieces)
    return VideoSplit(pieces[0].video.name, num_rows, num_rows * _ROW_BYTES, tuple(pieces))


def num_videos(source: Source) -> int:
    """How many videos of a source have frames that are asked about; 0 for a source of anything else."""
    pieces = [piece for split in source.splits if isinstance(split, VideoSplit) for piece in split.pieces]
    return len({piece.video.name for piece in pieces if piece.video.error is None})
