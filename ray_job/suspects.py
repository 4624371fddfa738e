"""Finds the rows that kill the process they run in, so that they cost themselves and no other row.

    in flight ──death──> pieces, each with nothing beside it ──death──> smaller pieces … ──death──> one row, to blame

Before a block of rows is worked on, a mark that outlives the process says so; it is taken away when the block is done.
A block that finds its own mark was in flight when a process died. Its rows are suspects and run in pieces, one after
the other; the piece that dies is cut again, until a row has died alone. So a row costs 1 + ⌈log₈ rows of a block⌉
deaths at most (two at least), and rows that were merely beside it pass. Setting and taking away one mark is all that
a block costs while nothing dies. It knows neither Ray nor engines.
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

BLOCKS = "block/"  # what the keys of blocks begin with
_FAN_OUT = 8
_EXIT_CODE = 70
_SHOWN_CHARS = 80
_MAX_SHOWN = 4


class Marks(Protocol):
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


class NoMarks:
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
class Blame:
    """A row that ended its process alone."""

    place: int
    tries: int
    code: ErrorCode
    message: str


class Block:
    """Rows that are worked on together, from the mark that is set to the mark that is taken away.

    Args:
        marks: where the mark is.
        key: the same whenever the same rows come.
        row_ids: of its rows, for messages.

    A suspect must run with nothing beside it.
    """

    def __init__(self, marks: Marks, key: str, row_ids: Sequence[Any]) -> None:
        self.blamed: list[Blame] = []  # not to be run again
        self.key = key
        self.is_running = False  # or waits for its turn; its mark is then of an earlier process
        self._marks = marks
        self._row_ids = row_ids
        self._pieces = [Piece(0, len(row_ids))]
        self.is_suspect = marks.put(key, self._mark(self._pieces), overwrite=False)
        if self.is_suspect and (mark := marks.get(key)) is not None:
            self._conclude(json.loads(mark))

    def pieces(self) -> Iterator[Piece]:
        """What is to be run, each piece in its turn."""
        for index, piece in enumerate(self._pieces):
            if self.is_suspect:
                piece = self._pieces[index] = replace(piece, tries=piece.tries + 1)
                self._marks.put(self.key, self._mark(self._pieces[index:] + self._pieces[:index]))
            self.is_running = True
            yield piece

    def note(self, error: RowError) -> None:
        """Says why the process is about to end."""
        mark = self._marks.get(self.key)
        if mark is not None:
            fields = {**json.loads(mark), "code": error.code, "message": error.message}
            self._marks.put(self.key, json.dumps(fields).encode())

    def leave(self) -> None:
        """Takes the mark away: the block is done."""
        self._marks.delete(self.key)

    def _conclude(self, mark: dict[str, Any]) -> None:
        """Learns from a death; the piece that ran then stands first."""
        died, *others = (Piece(*values) for values in mark["pieces"])
        self.blamed = [Blame(place, tries, ErrorCode(code), text) for place, tries, code, text in mark["blamed"]]
        if died.stop - died.start == 1 and died.tries > 1:
            self.blamed.append(Blame(died.start, died.tries, ErrorCode(mark["code"]), mark["message"]))
            self._pieces = others
        else:
            self._pieces = died.cut() + others

    def _mark(self, pieces: Sequence[Piece]) -> bytes:
        """What should be known if the process dies while the first of these pieces runs."""
        first, last = (self._row_ids[place] for place in (pieces[0].start, pieces[0].stop - 1))
        mark = {
            "pieces": [astuple(piece) for piece in pieces],
            "blamed": [astuple(blame) for blame in self.blamed],
            "rows": [f"{row_id!r}"[:_SHOWN_CHARS] for row_id in dict.fromkeys((first, last))],
            "code": ErrorCode.WORKER_KILLED,
            "message": "the process that worked on the row died: out of memory, or a crash in native code",
        }
        return json.dumps(mark).encode()


class Suspects:
    """The blocks that this process works on.

    Args:
        marks: None where nobody starts this process again.
        stage: of the work.
        deadline_s: of a row, in that stage.
    """

    def __init__(self, marks: Marks | None, stage: Stage, deadline_s: float | None = None) -> None:
        self._marks = marks
        self._stage = stage
        self._deadline_s = deadline_s
        self._blocks: dict[str, Block] = {}

    def enter(self, numbers: npt.NDArray[np.int64], row_ids: Sequence[Any]) -> Block:
        """Marks a block.

        Args:
            numbers: of its rows (`rows.POSITION`).
            row_ids: one for each row, or each sample, that can be run by itself.
        """
        key = f"{BLOCKS}{self._stage}/{hashlib.blake2b(numbers.tobytes(), digest_size=16).hexdigest()}"
        block = self._blocks[key] = Block(self._marks or NoMarks(), key, row_ids)
        return block

    def leave(self, block: Block) -> None:
        """The block is done."""
        del self._blocks[block.key]
        block.leave()

    def error(self, blame: Blame) -> RowError:
        """What is wrong with a row that was blamed."""
        text = f"{blame.message}. This was seen {blame.tries} times, the last time with no other row in flight"
        return RowError(blame.code, text, self._stage)

    def end_process(self, error: RowError) -> None:
        """Ends the process, for only a new one can go on, and leaves word why. Without marks it does nothing."""
        if self._marks is None:
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
        if self._marks is None or self._deadline_s is None:
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


class Turns:
    """Lets many calls of one event loop run beside each other, or one alone."""

    def __init__(self) -> None:
        self._door = asyncio.Lock()
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._num_inside = 0

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        """A turn beside others."""
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
    async def alone(self) -> AsyncIterator[None]:
        """A turn with nothing beside it; others wait until it is over."""
        async with self._door:
            await self._is_empty.wait()
            yield


def describe_marks(marks: Iterable[bytes]) -> str:
    """The rows in flight, those tried most often first, for a message."""
    found = sorted(map(json.loads, marks), key=lambda mark: -int(mark["pieces"][0][2]))
    shown = [" to ".join(mark["rows"]) for mark in found[:_MAX_SHOWN]]
    return f"Rows in flight: {', '.join(shown)}." if shown else ""
