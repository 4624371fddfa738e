"""Rows of documents: one for each page, or one for a few pages of a document (`documents.pages_per_row`).

A row is called by what it shows: `a/report.pdf#page=3`, `a/report.pdf#pages=1-8`. A document that cannot be opened, or
has no page that is asked about, is one row with that error, called `a/report.pdf`. Pages are counted where the job
starts, in processes that a hostile document may kill; rows are made where they are read. A page's own text is read only
where the prompt or `input.keep_columns` names `page_text`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby, islice

import pyarrow as pa

from ray_job.errors import RowError, SpecError, Stage
from ray_job.inputs.columns import Found, choose_roles
from ray_job.inputs.documents.counting import Document, count_documents
from ray_job.inputs.documents.document import OpenDocument
from ray_job.inputs.documents.opening import open_document, opened_file
from ray_job.inputs.documents.passwords import Passwords
from ray_job.inputs.documents.process import shared_process
from ray_job.inputs.documents.references import page_reference, range_reference
from ray_job.inputs.files import InputFiles
from ray_job.inputs.pieces import grouped
from ray_job.inputs.source import IMAGE_TYPE, Source, Split
from ray_job.spec import DocumentsSpec, JobSpec
from ray_job.storage.places import Location

IMAGE, PAGE_TEXT = "image", "page_text"
SPLIT_ROWS = 256
_ROW_BYTES = 512


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring rows of one document."""

    document: Document  # with the pages of these rows
    num_rows: int


@dataclass(frozen=True, slots=True)
class DocumentsSplit(Split):
    """Rows of documents beside each other."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class DocumentsSource(Source):
    """Rows of documents."""

    documents: DocumentsSpec
    passwords: Passwords
    reference_root: Location | None  # set where pictures' paths start elsewhere: documents are then named in full

    def read(self, split: Split, max_rows: int) -> Iterator[pa.Table]:
        """See `Source.read`."""
        assert isinstance(split, DocumentsSplit)
        rows = islice(self._rows(split), split.num_rows)
        while batch := list(islice(rows, max_rows)):
            yield self._table(batch)

    def _rows(self, split: DocumentsSplit) -> Iterator[tuple[Document, Sequence[int]]]:
        size = self.documents.pages_per_row or 1
        for piece in split.pieces:
            pages = piece.document.pages
            yield from ((piece.document, pages[start : start + size]) for start in range(0, max(1, len(pages)), size))

    def _table(self, rows: Sequence[tuple[Document, Sequence[int]]]) -> pa.Table:
        errors: list[RowError | None] = [document.error for document, _ in rows]
        values = {
            IMAGE: [self._pictures(document, pages) for document, pages in rows],
            "document": [document.name for document, _ in rows],
            "page": [pages[0] if pages else None for _, pages in rows],
            "last_page": [pages[-1] if pages else None for _, pages in rows],
            "num_pages": [document.num_pages or None for document, _ in rows],
        }
        if PAGE_TEXT in self.columns.names:
            values[PAGE_TEXT] = self._texts(rows, errors)
        ids = [self._id(document, pages) for document, pages in rows]
        arrays = [pa.array(values[field.name], field.type) for field in self.columns]
        return self.table([pa.array(ids, pa.string()), *arrays], errors)

    def _id(self, document: Document, pages: Sequence[int]) -> str:
        if not pages:
            return document.name
        is_range = self.documents.pages_per_row is not None
        return range_reference(document.name, pages) if is_range else page_reference(document.name, pages[0])

    def _pictures(self, document: Document, pages: Sequence[int]) -> object:
        root, name = self.reference_root, document.name
        name = name if root is None else document.location.reference
        found = [{"bytes": None, "path": page_reference(name, page)} for page in pages]
        return found if self.documents.pages_per_row is not None else next(iter(found), None)

    def _texts(self, rows: Sequence[tuple[Document, Sequence[int]]], errors: list[RowError | None]) -> list[str | None]:
        """The text of each row's pages, an empty line between them; a row whose pages give none has an error."""
        texts: list[str | None] = [None] * len(rows)
        for _, group in groupby(range(len(rows)), key=lambda place: rows[place][0].name):
            places = [place for place in group if errors[place] is None]
            if not places:
                continue
            try:
                with self._opened(rows[places[0]][0]) as opened:
                    for place in places:
                        texts[place], errors[place] = _text(opened, rows[place][1])
            except RowError as error:
                for place in places:
                    texts[place], errors[place] = None, RowError(error.code, error.message, Stage.READ)
        return texts

    @contextmanager
    def _opened(self, document: Document) -> Iterator[OpenDocument]:
        passwords = self.passwords.to_try()
        with (
            opened_file(document.location, self.documents) as file,
            open_document(shared_process(), file, passwords, self.documents) as opened,
        ):
            yield opened


def _text(opened: OpenDocument, pages: Sequence[int]) -> tuple[str | None, RowError | None]:
    try:
        return "\n\n".join(filter(None, map(opened.text, pages))), None
    except RowError as error:
        return None, RowError(error.code, error.message, Stage.READ)


def open_documents(spec: JobSpec, found: InputFiles) -> DocumentsSource:
    """Counts the documents' pages and plans the splits.

    Raises:
        InputError: no folder holds all inputs.
        SpecError: the spec does not fit the columns.
    """
    found.check_image_root(spec.input)
    if spec.input.id_column is not None:
        raise SpecError(["input.id_column: a row of documents is called by its document and page; leave it out"])
    columns = _columns(spec.documents)
    roles = choose_roles(spec, Found(columns, image_columns=(IMAGE,), not_kept=(PAGE_TEXT,)), "input")
    passwords = Passwords.of(spec.documents)
    own = {
        "documents": spec.documents,
        "passwords": passwords,
        "reference_root": None if spec.input.image_root is None else found.root,
    }
    with closing(count_documents(found.files, spec.documents, passwords, spec.limits.max_attempts)) as documents:
        splits = _splits(documents, spec.documents.pages_per_row or 1, spec.input.limit)
        return DocumentsSource.planned(spec, found, columns, roles, splits, **own)


def _columns(spec: DocumentsSpec) -> pa.Schema:
    is_range = spec.pages_per_row is not None
    return pa.schema(
        [
            (IMAGE, pa.list_(IMAGE_TYPE) if is_range else IMAGE_TYPE),
            ("document", pa.string()),
            ("page", pa.int32()),
            *([("last_page", pa.int32())] if is_range else []),
            ("num_pages", pa.int32()),
            (PAGE_TEXT, pa.string()),
        ]
    )


def _splits(documents: Iterable[Document], pages_per_row: int, limit: int | None) -> Iterator[DocumentsSplit]:
    """The rows of all documents, or at least the first `limit`, in splits of SPLIT_ROWS at most."""
    return map(_split, grouped(_pieces(documents, pages_per_row), SPLIT_ROWS, limit))


def _pieces(documents: Iterable[Document], pages_per_row: int) -> Iterator[Piece]:
    """Each document in pieces of SPLIT_ROWS rows at most."""
    step = SPLIT_ROWS * pages_per_row
    for document in documents:
        for start in range(0, max(1, len(document.pages)), step):
            pages = document.pages[start : start + step]
            yield Piece(replace(document, pages=pages), max(1, -(-len(pages) // pages_per_row)))


def _split(pieces: Sequence[Piece]) -> DocumentsSplit:
    num_rows = sum(piece.num_rows for piece in pieces)
    return DocumentsSplit(pieces[0].document.name, num_rows, num_rows * _ROW_BYTES, tuple(pieces))


def num_documents(source: Source) -> int:
    """How many documents of a source have pages that are asked about; 0 for a source of anything else."""
    pieces = [piece for split in source.splits if isinstance(split, DocumentsSplit) for piece in split.pieces]
    return len({piece.document.name for piece in pieces if piece.document.error is None})
