"""Poison rows: bisects which row of a block kills the process it runs in, so that only that row fails.

    in flight ──death──> pieces, each with nothing beside it ──death──> smaller pieces … ──death──> one row, the poison

Before a block of rows is worked on, a record of it goes into a store that outlives the process; it is deleted when the
block is done. A block that finds its own record was in flight when a process died: its rows then run in pieces, one
piece at a time; the piece that dies is split again, until a row has died alone. A poison row therefore costs at most
1 + ⌈log₈ rows of a block⌉ deaths (at least two), and rows that merely ran beside it pass. While nothing dies, a block
costs one write and one delete. Knows neither Ray nor engines.
"""

from __future__ import annotations

import asyncio
import faulthandler
import hashlib
import itertools
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import astuple, dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ray_job.errors import ErrorCode, RowError, Stage

IN_FLIGHT = "block/"  # what the keys of blocks begin with
_FAN_OUT = 8
_EXIT_CODE = 70
_SHOWN_CHARS = 80
_MAX_SHOWN = 4


class DurableStore(Protocol):
    """Small values that outlive the process that sets them."""

    @property
    def worker(self) -> str:
        """Who asks, the same in each process that takes another's place."""
        ...

    def put(self, key: str, value: bytes, overwrite: bool = True) -> bool:
        """Sets a value; whether there was one already, which stays unless it is overwritten."""
        ...

    def get(self, key: str) -> bytes | None:
        """A value, if there is one."""
        ...

    def delete(self, key: str) -> None:
        """Takes a value away, if there is one."""
        ...


class NoStore:
    """For a process that nobody starts again: a notebook, a test, a benchmark."""

    worker = ""

    def put(self, key: str, value: bytes, overwrite: bool = True) -> bool:
        return False

    def get(self, key: str) -> bytes | None:
        return None

    def delete(self, key: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a block, by place, from `start` to `stop`."""

    start: int
    stop: int
    tries: int = 1  # the present one included

    def cut(self) -> list[Piece]:
        """At most eight smaller ones; a single row stays as it is."""
        size = self.stop - self.start
        places = [self.start + size * index // _FAN_OUT for index in range(_FAN_OUT + 1)]
        return [Piece(start, stop, self.tries) for start, stop in itertools.pairwise(places) if start < stop]


@dataclass(frozen=True, slots=True)
class PoisonRow:
    """A row that ended its process alone."""

    place: int
    tries: int
    code: ErrorCode
    message: str


class Block:
    """Rows that are worked on together, and the record of them in the store.

    Args:
        store: where the record is kept.
        key: the same whenever the same rows come.
        row_ids: of its rows, for messages.

    A block that `was_in_flight` when a process died must run with nothing beside it.
    """

    def __init__(self, store: DurableStore, key: str, row_ids: Sequence[Any]) -> None:
        self.poisoned: list[PoisonRow] = []  # not to be run again
        self.key = key
        self.is_running = False  # or waits for its turn; its record is then an earlier process's
        self._store = store
        self._row_ids = row_ids
        self._pieces = [Piece(0, len(row_ids))]
        self.was_in_flight = store.put(key, self._record(self._pieces), overwrite=False)
        if self.was_in_flight and (record := store.get(key)) is not None:
            self._conclude(json.loads(record))

    def pieces(self) -> Iterator[Piece]:
        """What is to be run, each piece in its turn."""
        for index, piece in enumerate(self._pieces):
            if self.was_in_flight:
                piece = self._pieces[index] = replace(piece, tries=piece.tries + 1)
                self._store.put(self.key, self._record(self._pieces[index:] + self._pieces[:index]))
            self.is_running = True
            yield piece

    def note(self, error: RowError) -> None:
        """Says why the process is about to end."""
        record = self._store.get(self.key)
        if record is not None:
            fields = {**json.loads(record), "code": error.code, "message": error.message}
            self._store.put(self.key, json.dumps(fields).encode())

    def finish(self) -> None:
        """Deletes the record: the block is done."""
        self._store.delete(self.key)

    def _conclude(self, record: dict[str, Any]) -> None:
        """Learns from a death; the piece that ran then stands first."""
        died, *others = (Piece(*values) for values in record["pieces"])
        self.poisoned = [
            PoisonRow(place, tries, ErrorCode(code), text) for place, tries, code, text in record["poisoned"]
        ]
        if died.stop - died.start == 1 and died.tries > 1:
            self.poisoned.append(PoisonRow(died.start, died.tries, ErrorCode(record["code"]), record["message"]))
            self._pieces = others
        else:
            self._pieces = died.cut() + others

    def _record(self, pieces: Sequence[Piece]) -> bytes:
        """What should be known if the process dies while the first of these pieces runs."""
        first, last = (self._row_ids[place] for place in (pieces[0].start, pieces[0].stop - 1))
        record = {
            "pieces": [astuple(piece) for piece in pieces],
            "poisoned": [astuple(row) for row in self.poisoned],
            "rows": [f"{row_id!r}"[:_SHOWN_CHARS] for row_id in dict.fromkeys((first, last))],
            "code": ErrorCode.WORKER_KILLED,
            "message": "the process that worked on the row died: out of memory, or a crash in native code",
        }
        return json.dumps(record).encode()


class PoisonSearch:
    """The blocks that this process works on.

    Args:
        store: None where nobody starts this process again.
        stage: of the work.
        deadline_s: of a row, in that stage.
    """

    def __init__(self, store: DurableStore | None, stage: Stage, deadline_s: float | None = None) -> None:
        self._store = store
        self._stage = stage
        self._deadline_s = deadline_s
        self._blocks: dict[str, Block] = {}

    def begin(self, numbers: npt.NDArray[np.int64], row_ids: Sequence[Any]) -> Block:
        """Records a block as in flight.

        Args:
            numbers: of its rows (`rows.POSITION`).
            row_ids: one for each row, or each sample, that can be run by itself.
        """
        key = f"{IN_FLIGHT}{self._stage}/{hashlib.blake2b(numbers.tobytes(), digest_size=16).hexdigest()}"
        block = self._blocks[key] = Block(self._store or NoStore(), key, row_ids)
        return block

    def finish(self, block: Block) -> None:
        """The block is done."""
        del self._blocks[block.key]
        block.finish()

    def error(self, row: PoisonRow) -> RowError:
        """The error of a row that killed its process."""
        text = f"{row.message}. This was seen {row.tries} times, the last time with no other row in flight"
        return RowError(row.code, text, self._stage)

    def end_process(self, error: RowError) -> None:
        """Records why and ends the process, since only a new one can go on. Does nothing without a store."""
        if self._store is None:
            return
        for block in list(self._blocks.values()):
            if block.is_running:
                block.note(error)
        os._exit(_EXIT_CODE)

    @contextmanager
    def watch(self, busy_since: Callable[[], float | None]) -> Iterator[None]:
        """While open, ends the process when it is busy with one thing for longer than twice a row's deadline.

        Args:
            busy_since: by `time.monotonic`; None while it waits.
        """
        if self._store is None or self._deadline_s is None:
            yield
            return
        limit_s = 2 * self._deadline_s
        is_closed = threading.Event()

        def check() -> None:
            while not is_closed.wait(limit_s / 8):
                since_s = busy_since()
                if since_s is not None and time.monotonic() - since_s > limit_s:
                    self.end_process(RowError.overdue(limit_s / 2, self._stage))
                hold_off()

        with open(os.devnull, "w") as nowhere:

            def hold_off() -> None:
                # Ends the process unless called again in time: native code may never let go of the interpreter.
                faulthandler.dump_traceback_later(1.5 * limit_s, exit=True, file=nowhere)

            hold_off()
            thread = threading.Thread(target=check, name="watchdog", daemon=True)
            thread.start()
            try:
                yield
            finally:
                is_closed.set()
                thread.join()
                faulthandler.cancel_dump_traceback_later()


class ReadersWriterLock:
    """Calls of one event loop: many at once that share it, or one exclusively."""

    def __init__(self) -> None:
        self._door = asyncio.Lock()
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._num_inside = 0

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Held together with others."""
        async with self._door:
            self._num_inside += 1
            self._is_empty.clear()
        try:
            yield
        finally:
            self._num_inside -= 1
            if not self._num_inside:
                self._is_empty.set()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Held alone; others wait until it is released."""
        async with self._door:
            await self._is_empty.wait()
            yield


def describe_in_flight(records: Iterable[bytes]) -> str:
    """The rows in flight, those tried most often first, for a message."""
    found = sorted(map(json.loads, records), key=lambda record: -int(record["pieces"][0][2]))
    shown = [" to ".join(record["rows"]) for record in found[:_MAX_SHOWN]]
    return f"Rows in flight: {', '.join(shown)}." if shown else ""
