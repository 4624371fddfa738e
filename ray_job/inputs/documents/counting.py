"""How many pages documents have: read from the ends of their files, several documents at once, each by its process."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from ray_job.errors import ErrorCode, RowError, Stage, is_retryable
from ray_job.inputs.documents.opening import open_document, opened_file
from ray_job.inputs.documents.passwords import Passwords
from ray_job.inputs.documents.process import DocumentProcess
from ray_job.inputs.files import InputFile
from ray_job.inputs.isolation.side_by_side import each_file
from ray_job.spec import DocumentsSpec
from ray_job.storage.places import Location
from ray_job.storage.retrying import Retrying


@dataclass(frozen=True, slots=True)
class Document:
    """A document and those of its pages that are asked about, or why it has none."""

    name: str
    location: Location
    num_pages: int = 0
    pages: Sequence[int] = ()
    error: RowError | None = None


def count_documents(
    files: Sequence[InputFile], spec: DocumentsSpec, passwords: Passwords, max_attempts: int
) -> Generator[Document]:
    """Each file as a document, in order; nothing is looked at long before it is asked for.

    Args:
        files: of any size; only pieces are read.
        spec: which pages, and the limits.
        passwords: the job's.
        max_attempts: of what fails for a passing reason.
    """

    def count(process: DocumentProcess, file: InputFile) -> Document:
        try:
            return Retrying(max_attempts)(lambda: _counted(process, file, spec, passwords), is_retryable)
        except RowError as error:
            return Document(file.name, file.location, error=RowError(error.code, error.message, Stage.READ))

    return each_file(files, DocumentProcess, count)


def _counted(process: DocumentProcess, file: InputFile, spec: DocumentsSpec, passwords: Passwords) -> Document:
    with (
        opened_file(file.location, spec) as handle,
        open_document(process, handle, passwords.to_try(), spec) as document,
    ):
        num_pages = document.num_pages
    pages = spec.chosen(num_pages)
    if len(pages) > spec.max_pages:
        text = f"{len(pages)} pages; documents.max_pages is {spec.max_pages}. Raise it, or choose with documents.pages"
        raise RowError(ErrorCode.DOCUMENT_UNREADABLE, text)
    if not pages:
        text = f"the document has {num_pages} pages, and none is among documents.pages, {spec.pages!r}"
        raise RowError(ErrorCode.DOCUMENT_EMPTY, text)
    return Document(file.name, file.location, num_pages, pages)
