"""Pages as pictures: of PDF files drawn at the size that is wanted, of TIFF files decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from PIL import Image

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.documents.document import OpenDocument
from ray_job.inputs.documents.opening import open_document, opened_file
from ray_job.inputs.documents.process import shared_process
from ray_job.inputs.documents.references import CHOOSE_A_PAGE
from ray_job.inputs.pictures.decode import decode
from ray_job.inputs.pictures.rules import PictureRules
from ray_job.spec import DocumentsSpec, LimitsSpec
from ray_job.storage.places import Location

PixelSize = Callable[[float, float], tuple[int, int]]
"""Pixels, width and height, to draw a page at whose sides have this ratio."""


@dataclass
class PageDrawer:
    """Draws pages, one after the other; neighbouring ones of a document without opening it again.

    Args:
        documents: limits.
        limits: of pictures, and on the time for a row.
        rules: what pages of TIFF files are shown as.
        pixel_size: what the model can use.
    """

    documents: DocumentsSpec
    limits: LimitsSpec
    rules: PictureRules
    pixel_size: PixelSize
    _data: bytes = b""  # the document at hand, and its hash
    _digest: bytes = b""
    _looked_at: tuple[Location, Sequence[str | None]] | None = None  # by `size_in`, and its first page's size
    _first_size: tuple[int, int] = (0, 0)

    def digest(self, data: bytes, page: int | None) -> bytes:
        """Of a document's page, 16 bytes."""
        return _hash(self._digest_of(data), str(page).encode())

    def num_pages(self, data: bytes, passwords: Sequence[str | None]) -> int:
        """How many pages a document has. Raises RowError as `open_document`."""
        with self._opened(pa.BufferReader(data), passwords, self._digest_of(data)) as document:
            return document.num_pages

    def picture(self, data: bytes, page: int | None, passwords: Sequence[str | None]) -> Image.Image:
        """A page as RGB. Raises RowError as `open_document` and `decode`."""
        with self._opened(pa.BufferReader(data), passwords, self._digest_of(data)) as document:
            page = _chosen(document, page)
            if document.is_pdf:
                size = self.pixel_size(*document.size(page))
                return Image.frombytes("RGB", size, document.draw(page, *size))
            frame = document.frame(page)
        return decode(data, self.limits, self.rules, frame)

    def size(self, data: bytes, page: int | None, passwords: Sequence[str | None]) -> tuple[int, int]:
        """Width and height of that picture, in pixels, without drawing it."""
        with self._opened(pa.BufferReader(data), passwords, self._digest_of(data)) as document:
            return self._size(document, _chosen(document, page))

    def size_in(self, location: Location, page: int | None, passwords: Sequence[str | None]) -> tuple[int, int]:
        """The same, from a few pieces of a file. In a bucket the first page stands for all, since each look costs."""
        if page is not None and not location.is_local and self._looked_at == (location, passwords):
            return self._first_size
        with (
            opened_file(location, self.documents) as file,
            self._opened(file, passwords, ("file", str(location), file.size())) as document,
        ):
            page = _chosen(document, page)
            size = self._size(document, page if location.is_local else 1)
        self._looked_at, self._first_size = (location, passwords), size
        return size

    def _size(self, document: OpenDocument, page: int) -> tuple[int, int]:
        width, height = document.size(page)
        if document.is_pdf:
            return self.pixel_size(width, height)
        if not self.rules.accept_truncated and not document.has_its_end(page):
            raise RowError(ErrorCode.IMAGE_TRUNCATED, f"page {page} ends too early")
        return int(width), int(height)

    @contextmanager
    def _opened(self, file: Any, passwords: Sequence[str | None], key: Any) -> Iterator[OpenDocument]:
        deadline_s = min(self.documents.deadline_s, self.limits.row_deadline_s or self.documents.deadline_s)
        with open_document(shared_process(), file, passwords, self.documents, key, deadline_s) as document:
            yield document

    def _digest_of(self, data: bytes) -> bytes:
        if data is not self._data:
            self._data, self._digest = data, _hash(data)
        return self._digest


def _chosen(document: OpenDocument, page: int | None) -> int:
    """The page asked for, or the only one."""
    if page is None and document.num_pages > 1:
        raise RowError(ErrorCode.PAGE_UNREADABLE, f"a document of {document.num_pages} pages; {CHOOSE_A_PAGE}")
    return page or 1


def _hash(*data: bytes) -> bytes:
    return hashlib.blake2b(b"".join(data) if len(data) > 1 else data[0], digest_size=16).digest()
