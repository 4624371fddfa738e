"""What the committed parts of an output hold, from their footers alone: the key of every record, and which one counts.

Several records may have the same key: a failed row was tried again, or a worker of an earlier run that was taken for
dead wrote late. An answer takes precedence over an error, then the later run, then the later file name. The other
records are superseded: they are ignored, and `compaction.py` drops them at the end of a run.

Time and memory grow linearly with the records; `bench/RESULTS.md` has figures.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from ray_job.errors import RayJobError
from ray_job.output.account import FOOTER_KEY, Account, Ints, first_keys, positions_of, questions_of
from ray_job.output.parts import DATA, ERRORS, written_schema
from ray_job.storage.damage import is_damage
from ray_job.storage.places import STORAGE_ERRORS, Location, reason
from ray_job.storage.whole_files import part_files

Bools = npt.NDArray[np.bool_]
_THREADS = 16
_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True)
class Part:
    """One committed file."""

    folder: str  # DATA or ERRORS
    location: Location
    num_bytes: int
    modified_s: float
    num_rows: int
    account: Account
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))  # it was written with

    @property
    def name(self) -> str:
        """Relative to the output."""
        return f"{self.folder}/{self.location.path.rpartition('/')[2]}"

    @property
    def written_s(self) -> float:
        """When it was committed, Unix time."""
        return self.account.written_s or self.modified_s


@dataclass(frozen=True)
class Rows:
    """The input rows that have records, sorted by number; one entry of each array belongs to one row."""

    positions: Ints
    num_found: Ints  # records that count
    num_questions: Ints  # records the row should have
    num_answered: Ints
    attempts: Ints  # of its failed records, the highest

    @property
    def is_whole(self) -> Bools:
        """Whether every question of the row has a record."""
        return self.num_found >= self.num_questions

    @property
    def is_answered(self) -> Bools:
        """Whether every question of the row has an answer."""
        return self.num_answered >= self.num_questions


class Ledger:
    """The parts of an output at one moment."""

    def __init__(self, parts: list[Part], unreadable: dict[str, str]) -> None:
        self.parts = parts
        self.unreadable = unreadable  # name → what is wrong

    @classmethod
    def scan(cls, root: Location) -> Ledger:
        """Reads all footers.

        Raises:
            RayJobError: the storage fails. A file that is damaged or not a part is `unreadable` instead.
        """
        files = [(folder, info) for folder in (DATA, ERRORS) for info in part_files(root, folder)]
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(lambda file: _read_part(root, *file), files))
        parts = [part for part in found if isinstance(part, Part) and part.num_rows]  # see `empty_parts.py`
        return cls(parts, dict(bad for bad in found if not isinstance(bad, Part)))

    @cached_property
    def keys(self) -> Ints:
        """The key of every record, part after part."""
        return _joined([part.account.keys for part in self.parts])

    @cached_property
    def counts(self) -> Bools:
        """Whether each record counts."""
        if len(np.unique(self.keys)) == len(self.keys):
            return np.ones(len(self.keys), dtype=np.bool_)
        part_ranks = np.argsort(np.argsort([part.location.path.rpartition("/")[2] for part in self.parts]))
        order = np.lexsort((self._of_parts(part_ranks), self._runs, self.is_answer, self.keys))
        is_last = np.append(self.keys[order][1:] != self.keys[order][:-1], True)
        counts = np.zeros(len(self.keys), dtype=np.bool_)
        counts[order[is_last]] = True
        return counts

    @cached_property
    def is_answer(self) -> Bools:
        """Whether each record is an answer, and so lies in `data/`."""
        return self._of_parts(np.array([part.folder == DATA for part in self.parts], dtype=np.bool_))

    @property
    def num_superseded(self) -> int:
        """How many records do not count."""
        return int(np.count_nonzero(~self.counts))

    def counts_of(self, index: int) -> Bools:
        """Which records of a part count."""
        return self.counts[self._starts[index] : self._starts[index + 1]]

    def rows(self) -> Rows:
        """The input rows, by the records that count."""
        order = self._order
        positions = positions_of(self.keys[order])
        starts = np.flatnonzero(np.diff(positions, prepend=-1))
        is_answer = self.is_answer[order].astype(np.int64)
        num_questions = _joined([part.account.num_questions for part in self.parts])[order]
        attempts = _joined([part.account.attempts for part in self.parts])[order] * (1 - is_answer)
        if not len(starts):
            return Rows(*[starts] * 5)
        return Rows(
            positions=positions[starts],
            num_found=np.diff(np.append(starts, len(order))),
            num_questions=np.maximum.reduceat(num_questions, starts),
            num_answered=np.add.reduceat(is_answer, starts),
            attempts=np.maximum.reduceat(attempts, starts),
        )

    def questions_found(self, positions: Ints, answered_only: bool) -> list[list[int]]:
        """For each of the rows at `positions`, the questions that have a record, or only those that have an answer."""
        places = self._order[self.is_answer[self._order]] if answered_only else self._order
        keys = self.keys[places]
        starts, stops = (np.searchsorted(keys, first_keys(row)) for row in (positions, positions + 1))
        questions = questions_of(keys)
        return [questions[start:stop].tolist() for start, stop in zip(starts, stops, strict=True)]

    @cached_property
    def _starts(self) -> Ints:
        """The index of each part's first record among all records, and at the end the number of records."""
        return np.cumsum([0, *(len(part.account.keys) for part in self.parts)], dtype=np.int64)

    @cached_property
    def _order(self) -> Ints:
        """Indices of the records that count, in the order of their keys."""
        places = np.flatnonzero(self.counts)
        return places[np.argsort(self.keys[places], kind="stable")]

    def error_codes(self) -> dict[str, int]:
        """How often each code was recorded, most frequent first; superseded errors included."""
        counts: Counter[str] = Counter()
        for part in self.parts:
            counts.update(part.account.error_codes)
        return dict(counts.most_common())

    @property
    def _runs(self) -> Ints:
        return self._of_parts(np.array([part.account.run for part in self.parts], dtype=np.int64))

    def _of_parts(self, values: npt.NDArray[_T]) -> npt.NDArray[_T]:
        return np.repeat(values, [len(part.account.keys) for part in self.parts])


def _read_part(root: Location, folder: str, info: fs.FileInfo) -> Part | tuple[str, str]:
    location, name = root.at(info.path), f"{folder}/{info.base_name}"
    try:
        with root.filesystem.open_input_file(info.path) as stream:
            metadata = pq.read_metadata(stream)
        footer, schema = metadata.metadata or {}, written_schema(metadata)
    except (*STORAGE_ERRORS, ValueError) as error:
        if not is_damage(error):
            raise RayJobError(f"{location}: cannot be read: {reason(error)}. Try again") from None
        return name, reason(error)
    try:
        account = Account.of_footer(footer[FOOTER_KEY.encode()])
    except (ValueError, KeyError):
        return name, "its footer has no account of its rows"
    if len(account.keys) != metadata.num_rows:
        return name, f"its footer tells of {len(account.keys)} records and it has {metadata.num_rows}"
    return Part(folder, location, info.size or 0, info.mtime.timestamp(), metadata.num_rows, account, schema)


def _joined(arrays: list[Ints]) -> Ints:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)
