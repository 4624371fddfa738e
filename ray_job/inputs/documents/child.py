"""The process that opens documents and draws their pages, for `process.py`: one document, one thread.

What it is asked comes as JSON over a socket, and so do its answers; it runs nothing that a document could hold, has a
limit on its memory, and ends itself when it works on one thing for too long, whoever else has died.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.documents.pdf import PdfFile
from ray_job.inputs.documents.references import HEAD_BYTES, is_pdf
from ray_job.inputs.documents.tiff import SIGNATURES, TiffFile
from ray_job.inputs.documents.wire import BlockFile
from ray_job.inputs.pictures.signatures import picture_format


class _Child:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._file: PdfFile | TiffFile | None = None
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
            except Exception as error:  # also MemoryError: of this document, and the next request may do well
                answer, data = {"error": None, "message": f"{type(error).__name__}: {error}"[:200]}, b""
            _end_after(0)
            self._connection.send_bytes(json.dumps(answer).encode())
            self._connection.send_bytes(data)

    def _answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        if request["do"] == "open":
            self._open(request)
        file = self._file
        assert file is not None
        if request["do"] == "open":
            return {"kind": "pdf" if isinstance(file, PdfFile) else "tiff", "num_pages": file.num_pages}, b""
        page = request["page"]
        if request["do"] == "size":
            return {"size": file.size(page), "is_whole": isinstance(file, PdfFile) or file.has_its_end(page)}, b""
        if request["do"] == "text":
            return {}, file.text(page).encode()
        if isinstance(file, TiffFile):
            return {"frame": file.frame(page)}, b""
        return {}, file.draw(page, request["width"], request["height"])

    def _open(self, request: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        _limit_memory(request["max_bytes"])
        file = BlockFile(request["num_bytes"], self._fetch)
        head = file.read(HEAD_BYTES) or b""
        if head.startswith(SIGNATURES):
            file.seek(0)
            self._file = TiffFile(file)
        elif is_pdf(head):
            self._file = PdfFile(file, request["password"])
        else:
            what = "HTML" if head.lstrip()[:1] == b"<" else picture_format(head) or f"what begins with {head[:8]!r}"
            raise RowError(ErrorCode.DOCUMENT_UNREADABLE, f"no PDF or TIFF, but {what}")

    def _fetch(self, offset: int, num_bytes: int) -> bytes:
        """A piece of the document, from the parent; the storage may take its time."""
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


def main(descriptor: int) -> None:
    """Serves the socket that the parent gave."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent, whose end is this one's
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _Child(Connection(descriptor)).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
