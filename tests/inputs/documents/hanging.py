"""A process that prints the id of the one that draws for it, and waits for a page that hangs."""

from __future__ import annotations

import threading

import pyarrow as pa

from ray_job.inputs.documents.process import DocumentProcess
from ray_job.spec import DocumentsSpec
from tests.inputs.documents.files import nested_pdf

if __name__ == "__main__":
    process = DocumentProcess()
    with process.document(pa.BufferReader(nested_pdf()), None, DocumentsSpec(deadline_s=2)) as document:
        drawing = threading.Thread(target=document.draw, args=(1, 100, 100), daemon=True)
        print(process.pid, flush=True)
        drawing.start()
        drawing.join()
