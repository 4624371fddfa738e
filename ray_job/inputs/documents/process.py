"""The process that documents are opened in.

PDFium is not thread-safe and native code cannot be interrupted, so no process that matters ever loads it.
"""

from __future__ import annotations

import atexit
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.documents.document import OpenDocument
from ray_job.inputs.isolation.process import IsolatedProcess
from ray_job.spec import DocumentsSpec


class DocumentProcess(IsolatedProcess):
    """Opens one document at a time."""

    child = "ray_job.inputs.documents.child"

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
        request = {"password": password, "max_bytes": limits.max_memory_mib * 2**20}
        key = None if key is None else (key, password)
        with self.opened(file, request, key, deadline_s or limits.deadline_s) as found:
            yield OpenDocument(self.ask, found)

    def doing(self, request: dict[str, Any]) -> str:
        """See `IsolatedProcess.doing`."""
        return "opened the document" if request["do"] == "open" else f"worked on page {request['page']}"

    def code(self, request: dict[str, Any]) -> ErrorCode:
        """See `IsolatedProcess.code`."""
        return ErrorCode.DOCUMENT_UNREADABLE if request["do"] == "open" else ErrorCode.PAGE_UNREADABLE

    def overdue(self, request: dict[str, Any], limit_s: float) -> RowError:
        """See `IsolatedProcess.overdue`."""
        what = "opening the document" if request["do"] == "open" else f"page {request['page']}"
        return RowError(ErrorCode.DEADLINE, f"{what} took longer than documents.deadline_s, {limit_s:g} s")


@cache
def shared_process() -> DocumentProcess:
    """The one of this process, started when first used and kept: a start takes as long as some ten pages."""
    process = DocumentProcess()
    atexit.register(process.close)
    return process
