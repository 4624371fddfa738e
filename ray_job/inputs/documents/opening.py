"""Documents opened in another process, with whichever password fits, and with every failure named as the row's."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.documents.document import OpenDocument
from ray_job.inputs.documents.process import DocumentProcess
from ray_job.inputs.isolation import files as isolation
from ray_job.spec import DocumentsSpec
from ray_job.storage.places import Location

_LOCKED = "; set documents.password_env, or documents.password_column"
_WRONG = ", and no password that was given opens it"


@contextmanager
def open_document(
    process: DocumentProcess,
    file: Any,
    passwords: Sequence[str | None],
    limits: DocumentsSpec,
    key: Hashable = None,
    deadline_s: float | None = None,
) -> Iterator[OpenDocument]:
    """A document; see `DocumentProcess.document`.

    Raises:
        RowError: DOCUMENT_UNREADABLE, DOCUMENT_ENCRYPTED, DOCUMENT_EMPTY, PAGE_UNREADABLE, DEADLINE; STORAGE or
            OUT_OF_MEMORY where trying again may help.
    """
    with ExitStack() as stack:
        for index, password in enumerate(passwords, start=1):
            try:
                document = stack.enter_context(process.document(file, password, limits, key, deadline_s))
                break
            except RowError as error:
                if error.code != ErrorCode.DOCUMENT_ENCRYPTED or index < len(passwords):
                    if error.code == ErrorCode.DOCUMENT_ENCRYPTED:
                        continue
                    raise
                hint = _WRONG if any(passwords) else _LOCKED
                raise RowError(error.code, f"{error.message}{hint}", error.stage) from None
        yield document


@contextmanager
def opened_file(location: Location, limits: DocumentsSpec) -> Iterator[Any]:
    """A document's file for random access.

    Raises:
        RowError: IMAGE_MISSING, IMAGE_TOO_LARGE, DOCUMENT_UNREADABLE, DOCUMENT_EMPTY; STORAGE where trying again may
            help.
    """
    with isolation.opened_file(location, ErrorCode.DOCUMENT_UNREADABLE) as file:
        check_size(file.size(), limits)
        yield file


def check_size(num_bytes: int, limits: DocumentsSpec) -> None:
    """Raises RowError DOCUMENT_EMPTY or IMAGE_TOO_LARGE for a document of no size, or too large."""
    if num_bytes == 0:
        raise RowError(ErrorCode.DOCUMENT_EMPTY, "the document has zero bytes")
    if num_bytes > limits.max_document_bytes:
        text = f"the document has {num_bytes} bytes; documents.max_document_bytes is {limits.max_document_bytes}"
        raise RowError(ErrorCode.IMAGE_TOO_LARGE, text)
