"""A process that files are opened in: a crash, a hang or a bomb ends it, and costs that file, or what was asked of it.

What takes too long is ended with the process; what the process died of is tried once more in a new one, since an
earlier file may have done the damage.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, ClassVar

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.isolation.wire import BLOCK_BYTES

_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")  # no secret is within a file's reach
_LOADING_S = 60.0  # a busy machine may take long to start Python


class _DiedError(Exception):
    """The process ended while it worked on something."""


@dataclass(frozen=True)
class _Opened:
    """The file at hand."""

    file: Any
    request: Mapping[str, Any]
    deadline_s: float


class IsolatedProcess(ABC):
    """Opens one file at a time. Threads may share it, each waiting for its turn."""

    child: ClassVar[str]
    """The module that runs in the process; see `child.py`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._key: Hashable = None  # of the file that the process has open
        self._opened: _Opened | None = None
        self._found: dict[str, Any] = {}  # what opening it answered

    @abstractmethod
    def doing(self, request: dict[str, Any]) -> str:
        """What the process did when asked, as in `the process that … died`."""

    @abstractmethod
    def code(self, request: dict[str, Any]) -> ErrorCode:
        """Of the error where the process died of a request."""

    @abstractmethod
    def overdue(self, request: dict[str, Any], limit_s: float) -> RowError:
        """The error of what took too long."""

    @contextmanager
    def opened(
        self, file: Any, request: Mapping[str, Any], key: Hashable, deadline_s: float
    ) -> Iterator[dict[str, Any]]:
        """What is found in a file, which is opened unless it is the one that is open still; then `ask` about it.

        Args:
            file: a `pyarrow.NativeFile` with random access, open until the `with` ends.
            request: to open it with; `max_bytes` limits the process's memory.
            key: the same for the same file and request; None: open it anew.
            deadline_s: of each step.

        Raises:
            RowError: what the process says, or that it died or hung; OUT_OF_MEMORY or OSError where trying again may
                help.
        """
        with self._lock:
            self._opened = _Opened(file, request, deadline_s)
            try:
                if key is None or key != self._key or self._process is None:
                    self._key = None
                    self.ask({"do": "open"})
                    self._key = key
                yield self._found
            finally:
                self._opened = None

    @property
    def pid(self) -> int | None:
        """Of the process; None before the first file, and after a death."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._socket is not None:
            self._socket.close()
        self._process = self._socket = self._key = None

    def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """The process's answer.

        Raises:
            RowError: what it says is wrong, or that it died or hung.
        """
        try:
            return self._asked(request)
        except _DiedError:
            try:
                return self._asked(request)
            except _DiedError as error:
                text = (
                    f"the process that {self.doing(request)} died ({error}): out of memory, or a crash in native code"
                )
                raise RowError(self.code(request), text) from None

    def _asked(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        assert self._opened is not None
        if self._process is None:
            self._start()
            if request["do"] != "open":
                self._asked({"do": "open"})
        if request["do"] == "open":
            request = {**request, "num_bytes": self._opened.file.size(), **self._opened.request}
        answer, data = self._exchange(request)
        if "error" in answer:
            text = answer["message"]
            if answer["error"] is None:
                raise RowError(self.code(request), f"the process that {self.doing(request)} failed: {text}")
            raise RowError(ErrorCode(answer["error"]), text)
        if request["do"] == "open":
            self._found = answer
        return answer, data

    def _exchange(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Sends a request, reads for the process what it wants of the file, and takes its answer."""
        assert self._opened is not None
        assert self._socket is not None
        limit_s = self._opened.deadline_s
        end_s = time.monotonic() + limit_s
        try:
            self._socket.send_bytes(json.dumps({**request, "limit_s": limit_s}).encode())
            while True:
                if not self._socket.poll(max(0.0, end_s - time.monotonic())):
                    self.close()
                    raise self.overdue(request, limit_s)
                answer = json.loads(self._socket.recv_bytes())
                if "read" not in answer:
                    return answer, self._socket.recv_bytes()
                started_s = time.monotonic()
                self._socket.send_bytes(self._read(*answer["read"]))
                end_s += time.monotonic() - started_s  # a slow storage is not the file's fault
        except (EOFError, ConnectionError):
            raise self._death(request, limit_s) from None

    def _read(self, offset: int, num_bytes: int) -> bytes:
        assert self._opened is not None
        try:
            return bytes(self._opened.file.read_at(min(num_bytes, BLOCK_BYTES), offset))
        except BaseException:  # the process waits for an answer that will not come
            self.close()
            raise

    def _death(self, request: dict[str, Any], limit_s: float) -> Exception:
        """What the process's end means."""
        assert self._process is not None
        code = self._process.wait()
        self.close()
        if code == -signal.SIGALRM:
            return self.overdue(request, limit_s)
        if code == -signal.SIGKILL:
            return RowError(ErrorCode.OUT_OF_MEMORY, f"the process that {self.doing(request)} was killed")
        return _DiedError(signal.Signals(-code).name if code < 0 else f"exit code {code}")

    def _start(self) -> None:
        self._socket, theirs = Pipe()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self.child, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | {"PYTHONPATH": path},
            )
        self._key = None
        if not self._socket.poll(_LOADING_S):  # a busy machine may take long to start Python: no file's fault
            self.close()
            raise RowError(ErrorCode.OUT_OF_MEMORY, f"no process to open files in within {_LOADING_S:g} s")
        try:
            self._socket.recv_bytes()
        except EOFError:
            raise _DiedError("it did not start") from None
