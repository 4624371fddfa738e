"""A whole job over scanned documents with damaged ones among them: every page accounted for, and put together again."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from ray_job.bench.documents import write_documents
from ray_job.job import run_job
from ray_job.output.join import join
from ray_job.spec import JobSpec
from ray_job.storage.places import locate


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("local_ray")
def test_every_page_of_every_document_is_accounted_for(tmp_path: Path) -> None:
    write_documents(tmp_path / "in", 200)
    data = {
        "input": {"path": str(tmp_path / "in")},
        "documents": {"deadline_s": 5},
        "prompt": {"template": "Page {page} of {num_pages}"},
        "model": {"path": "builtin:noop"},
        "output": {"path": str(tmp_path / "out")},
    }
    report = run_job(JobSpec.from_dict(data), stream=io.StringIO())
    assert (report.input_rows, report.totals.answered) == (206, 200)
    codes = report.totals.error_codes
    assert codes.pop("document_unreadable") == 4
    # Two pages of forms within forms: which of their limits they meet first, time or memory, is the machine's.
    assert codes.keys() <= {"deadline", "page_unreadable"}
    assert sum(codes.values()) == 2
    rows = [
        row
        for folder in ("data", "errors")
        for row in ds.dataset(tmp_path / "out" / folder, format="parquet").to_table().to_pylist()
    ]
    assert len({row["row_id"] for row in rows}) == len(rows) == 206
    pages = Counter(row["document"] for row in rows if row["error"] is None)
    assert pages == {f"{number:05}.pdf": 10 for number in range(20)}
    joined = join(locate(str(tmp_path / "out")), locate(str(tmp_path / "to")))
    assert (joined.documents, joined.answered, joined.failed) == (26, 200, 6)
