"""The process that files are opened in, for `process.py`: one file, one thread.

What it is asked comes as JSON over a socket, and so do its answers; it runs nothing that a file could hold, has a limit
on its memory, and ends itself when it works on one thing for too long, whoever else has died.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from ray_job.errors import RowError
from ray_job.inputs.isolation.wire import BlockFile


class Opener(Protocol):
    """What the process does with files; it holds one at a time. Both raise RowError for what is wrong with the file."""

    def open(self, file: BlockFile, request: dict[str, Any]) -> dict[str, Any]:
        """Opens a file in place of the one before, and says what it found."""

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """What is asked about the file that is open."""


class _Child:
    def __init__(self, connection: Connection, opener: Opener) -> None:
        self._connection = connection
        self._opener = opener
        self._limit_s = 0.0

    def serve(self) -> None:
        """Answers until the parent is gone."""
        self._connection.send_bytes(b"ready")
        while True:
            try:
                request = json.loads(self._connection.recv_bytes())
            except EOFError:
                return
            self._limit_s = request["limit_s"]
            _end_after(self._limit_s)
            try:
                answer, data = self._answer(request)
            except RowError as error:
                answer, data = {"error": str(error.code), "message": error.message}, b""
            except Exception as error:  # also MemoryError: of this file, and the next request may do well
                answer, data = {"error": None, "message": f"{type(error).__name__}: {error}"[:200]}, b""
            _end_after(0)
            self._connection.send_bytes(json.dumps(answer).encode())
            self._connection.send_bytes(data)

    def _answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        if request["do"] != "open":
            return self._opener.answer(request)
        _limit_memory(request["max_bytes"])
        return self._opener.open(BlockFile(request["num_bytes"], self._fetch), request), b""

    def _fetch(self, offset: int, num_bytes: int) -> bytes:
        """A piece of the file, from the parent; the storage may take its time."""
        _end_after(0)
        self._connection.send_bytes(json.dumps({"read": [offset, num_bytes]}).encode())
        data = self._connection.recv_bytes()
        _end_after(self._limit_s)
        return data


def _end_after(seconds: float) -> None:
    """The kernel ends this process then, native code or not; 0: never."""
    signal.setitimer(signal.ITIMER_REAL, seconds and seconds + 1)


def _limit_memory(max_bytes: int) -> None:
    """Beyond what the process is at its start."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(ValueError, OSError):  # where the system has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (_START_BYTES + max_bytes, hard))


def _own_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 2**30


_START_BYTES = _own_bytes()


def serve(descriptor: int, opener: Opener) -> None:
    """Serves the socket that the parent gave."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent, whose end is this one's
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _Child(Connection(descriptor), opener).serve()
