"""WebDataset shards walked once, by their headers: how many samples there are, where to cut, what columns they have.

Pictures are passed over. JSON is read, since its keys are columns; in a bucket most of it comes with the headers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from ray_job.errors import InputError, RowError
from ray_job.inputs.files import InputFile
from ray_job.inputs.formats.tables.table_source import TableSplit
from ray_job.inputs.formats.text.json_columns import parse_object
from ray_job.inputs.formats.webdataset.sample_columns import JSON, Keys
from ray_job.inputs.formats.webdataset.samples import Loose, Sample, iter_samples
from ray_job.inputs.formats.webdataset.tar_members import iter_members, open_tar

SPLIT_BYTES = 32 * 2**20
SPLIT_ROWS = 4096
_AGAIN = "the key {key!r} comes again in this shard; give each sample a key of its own"
_APART = "members of {key!r} stand apart in this shard, with others between them; write it again sorted by name"


@dataclass(frozen=True, slots=True)
class ShardSplit(TableSplit):
    """Neighbouring samples of one shard."""

    start: int  # bytes
    stop: int | None  # None: all that follows
    repeated: Mapping[int, tuple[int, str]]  # by offset: the how manieth with its key, and what is wrong with that


@dataclass
class Shard:
    """What a walk over a shard found."""

    splits: list[ShardSplit] = field(default_factory=list)
    layouts: dict[frozenset[str], None] = field(default_factory=dict)  # in order of first sight
    keys: Keys = field(default_factory=Keys)
    loose: Loose = field(default_factory=Loose)


def walk(file: InputFile, max_bytes: int) -> Shard:
    """Walks a shard.

    Raises:
        InputError: it cannot be opened, or is no tar archive.
    """
    shard, places = Shard(), _Places()
    with open_tar(file.location) as reader:
        members = iter_members(reader)
        for sample in iter_samples(reader, members, JSON.__contains__, max_bytes, shard.loose):
            if sample.error is not None and not sample.key and sample.offset == 0:
                raise InputError(f"{file.location}: not a tar archive. Check input.path, or take the file out of it")
            layout = frozenset(sample.fields)
            shard.layouts.setdefault(layout)
            for name in JSON:
                with contextlib.suppress(RowError):
                    shard.keys.see(parse_object(sample.fields.get(name) or b"{}"))
            places.add(sample, layout)
        is_one = not reader.can_seek
    shard.splits = places.splits(file, is_one)
    return shard


class _Places:
    """Where samples begin, and which keys come more than once."""

    def __init__(self) -> None:
        self._offsets: list[int] = []
        self._first: dict[int, tuple[int, frozenset[str], int]] = {}  # by hash: offset, extensions, how often
        self._repeated: dict[int, tuple[int, str]] = {}

    def add(self, sample: Sample, layout: frozenset[str]) -> None:
        self._offsets.append(sample.offset)
        if not sample.key:
            return
        offset, extensions, times = self._first.get(hash(sample.key), (sample.offset, layout, 0))
        self._first[hash(sample.key)] = offset, extensions | layout, times + 1
        if times and extensions & layout:
            self._repeated[sample.offset] = times, _AGAIN.format(key=sample.key)
        elif times:
            text = _APART.format(key=sample.key)
            self._repeated[sample.offset] = times, text
            self._repeated.setdefault(offset, (0, text))

    def splits(self, file: InputFile, is_one: bool) -> list[ShardSplit]:
        """The samples cut into splits; one for a shard that is only read from its start."""
        starts: list[int] = []  # indices of samples
        for index, offset in enumerate(self._offsets):
            since = index - starts[-1] if starts else SPLIT_ROWS
            num_bytes = offset - self._offsets[starts[-1]] if starts else SPLIT_BYTES
            if not starts or (not is_one and (since >= SPLIT_ROWS or num_bytes >= SPLIT_BYTES)):
                starts.append(index)
        return [
            self._split(file, first, last, last == len(self._offsets))
            for first, last in zip(starts, [*starts, len(self._offsets)][1:], strict=True)
        ]

    def _split(self, file: InputFile, first: int, last: int, is_last: bool) -> ShardSplit:
        start, stop = self._offsets[first], None if is_last else self._offsets[last]
        num_bytes = (file.num_bytes or 0 if stop is None else stop) - start
        repeated = {
            offset: found
            for offset, found in self._repeated.items()
            if offset >= start and (stop is None or offset < stop)
        }
        return ShardSplit(file.name, last - first, max(0, num_bytes), file.location, first, start, stop, repeated)
