"""The process that opens documents and draws their pages, for `process.py`."""

from __future__ import annotations

import sys
from typing import Any

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.documents.pdf import PdfFile
from ray_job.inputs.documents.references import HEAD_BYTES, is_pdf
from ray_job.inputs.documents.tiff import SIGNATURES, TiffFile
from ray_job.inputs.isolation.child import serve
from ray_job.inputs.isolation.wire import BlockFile
from ray_job.inputs.pictures.signatures import picture_format


class DocumentOpener:
    """The document at hand, and what is asked about its pages."""

    def __init__(self) -> None:
        self._file: PdfFile | TiffFile | None = None

    def open(self, file: BlockFile, request: dict[str, Any]) -> dict[str, Any]:
        """Raises RowError: DOCUMENT_UNREADABLE, DOCUMENT_ENCRYPTED, DOCUMENT_EMPTY."""
        if self._file is not None:
            self._file.close()
            self._file = None
        head = file.read(HEAD_BYTES) or b""
        if head.startswith(SIGNATURES):
            file.seek(0)
            self._file = TiffFile(file)
        elif is_pdf(head):
            self._file = PdfFile(file, request["password"])
        else:
            what = "HTML" if head.lstrip()[:1] == b"<" else picture_format(head) or f"what begins with {head[:8]!r}"
            raise RowError(ErrorCode.DOCUMENT_UNREADABLE, f"no PDF or TIFF, but {what}")
        return {"kind": "pdf" if isinstance(self._file, PdfFile) else "tiff", "num_pages": self._file.num_pages}

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Raises RowError PAGE_UNREADABLE."""
        file, page = self._file, request["page"]
        assert file is not None
        if request["do"] == "size":
            return {"size": file.size(page), "is_whole": isinstance(file, PdfFile) or file.has_its_end(page)}, b""
        if request["do"] == "text":
            return {}, file.text(page).encode()
        if isinstance(file, TiffFile):
            return {"frame": file.frame(page)}, b""
        return {}, file.draw(page, request["width"], request["height"])


if __name__ == "__main__":
    serve(int(sys.argv[1]), DocumentOpener())
