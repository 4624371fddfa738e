"""A process that documents are opened in: a crash, a hang or a bomb ends it, and costs that page or document only.

PDFium is not thread-safe and native code cannot be interrupted, so no process that matters ever loads it. A page that
takes too long is ended with the process; one that the process died of is tried once more in a new one, since an earlier
document may have done the damage.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.documents.document import OpenDocument
from ray_job.inputs.documents.wire import BLOCK_BYTES
from ray_job.spec import DocumentsSpec

_CHILD = "ray_job.inputs.documents.child"
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")  # no secret is within a document's reach
_LOADING_S = 60.0  # a busy machine may take long to start Python


class _DiedError(Exception):
    """The process ended while it worked on something."""


@dataclass(frozen=True)
class _Opened:
    """The document at hand."""

    file: Any
    password: str | None
    limits: DocumentsSpec
    deadline_s: float


class DocumentProcess:
    """Opens one document at a time. Threads may share it, each waiting for its turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._key: Hashable = None  # of the document that the process has open
        self._opened: _Opened | None = None
        self._found: dict[str, Any] = {}  # what opening it answered

    @contextmanager
    def document(
        self,
        file: Any,
        password: str | None,
        limits: DocumentsSpec,
        key: Hashable = None,
        deadline_s: float | None = None,
    ) -> Iterator[OpenDocument]:
        """A document, opened unless it is the one that is open still.

        Args:
            file: a `pyarrow.NativeFile` with random access, open until the `with` ends.
            password: of an encrypted one.
            limits: on time and memory.
            key: the same for the same document; None: open it anew.
            deadline_s: of each step; by default that of the limits.

        Raises:
            RowError: DOCUMENT_UNREADABLE, DOCUMENT_ENCRYPTED, DOCUMENT_EMPTY, DEADLINE; OUT_OF_MEMORY or OSError where
                trying again may help.
        """
        with self._lock:
            self._opened = _Opened(file, password, limits, deadline_s or limits.deadline_s)
            try:
                if key is None or (key, password) != self._key or self._process is None:
                    self._key = None
                    self._ask({"do": "open"})
                    self._key = None if key is None else (key, password)
                yield OpenDocument(self._ask, self._found)
            finally:
                self._opened = None

    @property
    def pid(self) -> int | None:
        """Of the process; None before the first document, and after a death."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._socket is not None:
            self._socket.close()
        self._process = self._socket = self._key = None

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
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
                text = f"the process that {_doing(request)} died ({error}): out of memory, or a crash in native code"
                raise RowError(_code(request), text) from None

    def _asked(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        assert self._opened is not None
        if self._process is None:
            self._start()
            if request["do"] != "open":
                self._asked({"do": "open"})
        if request["do"] == "open":
            file = self._opened.file
            limits = {"max_bytes": self._opened.limits.max_memory_mib * 2**20}
            request = {**request, "num_bytes": file.size(), "password": self._opened.password, **limits}
        answer, data = self._exchange(request)
        if "error" in answer:
            text = answer["message"]
            if answer["error"] is None:
                raise RowError(_code(request), f"the process that {_doing(request)} failed: {text}")
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
                    raise _overdue(request, limit_s)
                answer = json.loads(self._socket.recv_bytes())
                if "read" not in answer:
                    return answer, self._socket.recv_bytes()
                started_s = time.monotonic()
                self._socket.send_bytes(self._read(*answer["read"]))
                end_s += time.monotonic() - started_s  # a slow storage is not the document's fault
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
            return _overdue(request, limit_s)
        if code == -signal.SIGKILL:
            return RowError(ErrorCode.OUT_OF_MEMORY, f"the process that {_doing(request)} was killed")
        return _DiedError(signal.Signals(-code).name if code < 0 else f"exit code {code}")

    def _start(self) -> None:
        self._socket, theirs = Pipe()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _CHILD, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | {"PYTHONPATH": path},
            )
        self._key = None
        if not self._socket.poll(_LOADING_S):  # a busy machine may take long to start Python: no document's fault
            self.close()
            raise RowError(ErrorCode.OUT_OF_MEMORY, f"no process for documents within {_LOADING_S:g} s")
        try:
            self._socket.recv_bytes()
        except EOFError:
            raise _DiedError("it did not start") from None


@cache
def shared_process() -> DocumentProcess:
    """The one of this process, started when first used and kept: a start takes as long as some ten pages."""
    process = DocumentProcess()
    atexit.register(process.close)
    return process


def _overdue(request: dict[str, Any], limit_s: float) -> RowError:
    what = "opening the document" if request["do"] == "open" else f"page {request['page']}"
    return RowError(ErrorCode.DEADLINE, f"{what} took longer than documents.deadline_s, {limit_s:g} s")


def _doing(request: dict[str, Any]) -> str:
    return "opened the document" if request["do"] == "open" else f"worked on page {request['page']}"


def _code(request: dict[str, Any]) -> ErrorCode:
    return ErrorCode.DOCUMENT_UNREADABLE if request["do"] == "open" else ErrorCode.PAGE_UNREADABLE
