"""PDF by PDFium. Used in a document's own process only: PDFium shares state between threads, and may crash or hang."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import pypdfium2
import pypdfium2.raw as pdfium
from pypdfium2.internal import ErrorToStr, get_bufreader

from ray_job.errors import ErrorCode, RowError

_WHITE = (255, 255, 255, 255)


class PdfFile:
    """An open PDF.

    Args:
        file: seekable.
        password: of an encrypted one; any other opens with any.

    Raises:
        RowError: DOCUMENT_UNREADABLE, DOCUMENT_ENCRYPTED, DOCUMENT_EMPTY.
    """

    def __init__(self, file: Any, password: str | None) -> None:
        self._access = get_bufreader(file)  # PDFium reads by it as long as the document is open
        raw = pdfium.FPDF_LoadCustomDocument(self._access[0], None if password is None else password.encode() + b"\0")
        if not raw:
            raise _unopened(pdfium.FPDF_GetLastError())
        self._pdf = pypdfium2.PdfDocument(raw)
        self._pdf.init_forms()  # else fields that are filled in would be left out
        self.num_pages = len(self._pdf)
        if self.num_pages < 1:  # pypdfium2 would name the last error there was, of whichever document
            self._pdf.close()
            raise RowError(ErrorCode.DOCUMENT_EMPTY, "the document has no pages")

    def close(self) -> None:
        """Lets go of it."""
        self._pdf.close()

    def size(self, page: int) -> tuple[float, float]:
        """Width and height as shown, in points; its content is not looked at. Raises RowError PAGE_UNREADABLE."""
        try:
            width, height = self._pdf.get_page_size(page - 1)
        except pypdfium2.PdfiumError as error:
            raise self._no_page(page, error) from None
        if not (0 < width < math.inf and 0 < height < math.inf):
            raise RowError(ErrorCode.PAGE_UNREADABLE, f"page {page} is {width:g} × {height:g} points large")
        return width, height

    def draw(self, page: int, width: int, height: int) -> bytes:
        """The page as RGB on white, `height` × `width` × 3, with annotations and the fields of a form as filled in.

        Raises:
            RowError: PAGE_UNREADABLE.
        """
        shown = self._page(page)
        try:
            bitmap = pypdfium2.PdfBitmap.new_native(width, height, pdfium.FPDFBitmap_BGR, rev_byteorder=True)
            bitmap.fill_rect(_WHITE, 0, 0, width, height)
            where = (bitmap, shown, 0, 0, width, height, 0, pdfium.FPDF_ANNOT | pdfium.FPDF_REVERSE_BYTE_ORDER)
            pdfium.FPDF_RenderPageBitmap(*where)
            if self._pdf.formenv:
                pdfium.FPDF_FFLDraw(self._pdf.formenv, *where)
            pixels: bytes = bitmap.to_pil().tobytes()
            bitmap.close()
            return pixels
        finally:
            shown.close()

    def text(self, page: int) -> str:
        """The page's own text, in the order of the file; none of a scan. Raises RowError PAGE_UNREADABLE."""
        shown = self._page(page)
        try:
            layer = shown.get_textpage()
            try:
                return _plain(layer.get_text_range())
            finally:
                layer.close()
        except pypdfium2.PdfiumError as error:
            raise self._no_page(page, error) from None
        finally:
            shown.close()

    def _page(self, page: int) -> Any:
        try:
            return self._pdf.get_page(page - 1)
        except (pypdfium2.PdfiumError, ctypes.ArgumentError) as error:
            raise self._no_page(page, error) from None

    def _no_page(self, page: int, error: Exception) -> RowError:
        if page > self.num_pages:
            return RowError(ErrorCode.PAGE_UNREADABLE, f"there is no page {page}; the document has {self.num_pages}")
        return RowError(ErrorCode.PAGE_UNREADABLE, f"page {page} of {self.num_pages} is damaged: {error}")


def _unopened(code: int) -> RowError:
    if code == pdfium.FPDF_ERR_PASSWORD:
        return RowError(ErrorCode.DOCUMENT_ENCRYPTED, "the document is encrypted")
    if code == pdfium.FPDF_ERR_SECURITY:
        return RowError(ErrorCode.DOCUMENT_ENCRYPTED, "the document is encrypted in a way that cannot be read")
    return RowError(ErrorCode.DOCUMENT_UNREADABLE, f"the PDF is damaged: {ErrorToStr.get(code, code)}")


def _plain(text: str) -> str:
    """Text that Arrow and a tokenizer can take: no NUL, no half of a surrogate pair, one kind of line end."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")
    return whole.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")
