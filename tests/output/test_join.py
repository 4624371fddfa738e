"""Answers about pages put together by document: in order, complete, and within the folder they are for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from ray_job.cli import main
from ray_job.errors import SpecError
from ray_job.output.join import join, markdown_names
from ray_job.rows import output_schema, result_schema
from ray_job.spec import JobSpec
from ray_job.stages.write import PartWriter
from ray_job.storage.places import Location, locate

from ..inputs.documents import files
from ..jobs_here import run_here
from .conftest import FAILED, OK, record

KEPT = [pa.field("document", pa.string()), pa.field("page", pa.int32()), pa.field("num_pages", pa.int32())]


def write(root: Location, rows: Iterable[dict[str, Any]], run: int = 1) -> None:
    """Commits rows as one part, and a manifest where there is none."""
    columns = output_schema(pa.string(), KEPT, False)
    PartWriter(root, columns, run)(pa.Table.from_pylist(list(rows), result_schema(columns)))


def page(position: int, document: str | None, number: int | None, status: str = OK, **other: Any) -> dict[str, Any]:
    text = f"text of {document} {number}" if status == OK else None
    own = {"document": document, "page": number, "num_pages": 9, "generated_text": text}
    return record(position, status, **{**own, **other})


@pytest.fixture
def manifest(root: Location, tmp_path: Path) -> None:
    """Of a run over one document, whose rows are then taken away."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.pdf").write_bytes(files.text_pdf(["x"]))
    run_here(_spec(tmp_path / "in", root.path))
    for part in Path(root.path).rglob("part-*.parquet"):
        part.unlink()


def _spec(folder: Path, out: str, **sections: Any) -> JobSpec:
    data = {"input": {"path": str(folder), "format": "documents"}, "output": {"path": out}}
    prompt = {"prompt": {"template": "{page_text}"}, "model": {"path": "builtin:noop"}}
    return JobSpec.from_dict({**data, **prompt, **sections})


def read(target: Path) -> list[dict[str, Any]]:
    table = pq.read_table(target / "documents.parquet")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


@pytest.mark.usefixtures("manifest")
def test_pages_stand_in_order_whatever_order_they_were_answered_in(root: Location, tmp_path: Path) -> None:
    write(root, [page(4, "a/r.pdf", 3), page(7, "b.pdf", 1)])
    write(root, [page(2, "a/r.pdf", 1), page(3, "a/r.pdf", 2, FAILED)])
    write(root, [page(9, "bad.pdf", None, FAILED, num_pages=None)])
    target = tmp_path / "documents"
    report = join(root, locate(str(target)))
    assert (report.documents, report.answered, report.failed) == (3, 3, 2)
    rows = {row["document"]: row for row in read(target)}
    assert list(rows) == ["a/r.pdf", "b.pdf", "bad.pdf"]
    row = rows["a/r.pdf"]
    assert row["num_pages"] == 9
    assert [span["page"] for span in row["pages"]] == [1, 2, 3]
    found = [row["text"][span["start"] : span["end"]] for span in row["pages"]]
    assert found == ["text of a/r.pdf 1", "", "text of a/r.pdf 3"]
    assert [span["error"] for span in row["pages"]] == [None, "storage: gone", None]
    assert row["text"] == (target / "a" / "r.md").read_text()
    assert row["text"] == (
        "<!-- Page 1 -->\n\ntext of a/r.pdf 1\n\n"
        "<!-- Page 2 -->\n\n> **Page 2 failed:** storage: gone\n\n"
        "<!-- Page 3 -->\n\ntext of a/r.pdf 3\n\n"
    )
    assert rows["bad.pdf"]["num_pages"] is None
    assert (target / "bad.md").read_text() == "> **The document failed:** storage: gone\n\n"


@pytest.mark.usefixtures("manifest")
def test_batches_hold_what_one_would_and_leave_nothing_of_an_earlier_join(root: Location, tmp_path: Path) -> None:
    for start in range(0, 60, 7):
        write(root, [page(n, f"{n % 20}.pdf", n // 20 + 1) for n in range(start, min(60, start + 7))])
    small, whole = tmp_path / "small", tmp_path / "whole"
    join(root, locate(str(small)), batch_bytes=100)
    assert len(list((small / "documents.parquet").iterdir())) > 5
    join(root, locate(str(whole)))
    assert read(small) == read(whole)
    assert len(read(whole)) == 20
    assert all(len(row["pages"]) == 3 for row in read(whole))
    join(root, locate(str(small)))
    assert [path.name for path in (small / "documents.parquet").iterdir()] == ["part-00000.parquet"]


@pytest.mark.usefixtures("manifest")
def test_of_a_page_that_was_tried_again_the_answer_counts(root: Location, tmp_path: Path) -> None:
    write(root, [page(0, "a.pdf", 1, FAILED), page(1, "a.pdf", 2)])
    write(root, [page(0, "a.pdf", 1)], run=2)
    join(root, locate(str(tmp_path / "to")))
    (row,) = read(tmp_path / "to")
    assert [span["status"] for span in row["pages"]] == [OK, OK]


@pytest.mark.usefixtures("manifest")
def test_a_run_that_is_not_finished_is_joined_as_far_as_it_got(root: Location, tmp_path: Path) -> None:
    write(root, [page(0, "a.pdf", 1)])
    assert "not finished" not in join(root, locate(str(tmp_path / "to"))).table()
    (Path(root.path) / "_SUCCESS").unlink()
    report = join(root, locate(str(tmp_path / "to")))
    assert (report.documents, report.is_whole) == (1, False)
    assert "not finished" in report.table()


@pytest.mark.usefixtures("manifest")
def test_names_stay_in_the_folder(root: Location, tmp_path: Path) -> None:
    names = ["../../out.pdf", "/etc/x.pdf", "a/../../b.pdf", "..", "", None, "a\0b.pdf", "..\\c.pdf", "d/./e.pdf"]
    write(root, [page(n, name, 1) for n, name in enumerate(names)])
    target = tmp_path / "deep" / "to"
    join(root, locate(str(target)))
    assert not (tmp_path / "out.md").exists()
    assert len(list(tmp_path.rglob("*.md"))) == len(list(target.rglob("*.md"))) == len(names) - 1
    assert len(read(target)) == len(names) - 1, "rows without a document's name are one"


def test_no_two_documents_share_a_file() -> None:
    documents = ["a.pdf", "a.tif", "b.pdf", "c/d.pdf", "c.md/x.pdf", "c.pdf", "a.pdf.pdf", "../e.pdf", "_/e.pdf"]
    names = markdown_names(documents)
    assert names["b.pdf"] == "b.md"
    assert (names["a.pdf"], names["a.tif"]) == ("a.pdf.md", "a.tif.md")
    assert len(set(names.values())) == len(documents)
    assert names["c.pdf"] == "c.pdf.md", "c.md is a folder"
    folders = {str(Path(name).parent) for name in names.values()}
    assert not folders & set(names.values())


def test_a_whole_job_joined_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "r.pdf").write_bytes(files.text_pdf(["one", "two", "three"]))
    (folder / "bad.pdf").write_bytes(files.HTML)
    run_here(_spec(folder, str(tmp_path / "out"), documents={"pages_per_row": 2}))
    assert main(["join", str(tmp_path / "out"), "--to", str(tmp_path / "to")]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == ["documents  2", "answers    2", "failed     1"]
    assert "<!-- Pages 1 to 2 -->" in (tmp_path / "to" / "a" / "r.md").read_text()
    assert "document_unreadable" in (tmp_path / "to" / "bad.md").read_text()


def test_an_output_of_something_else_says_which_columns_are_missing(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"_manifest\.json"):
        join(locate(str(tmp_path)), locate(str(tmp_path / "to")))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.pdf").write_bytes(files.text_pdf(["x"]))
    data = _spec(tmp_path / "in", str(tmp_path / "out")).model_dump(mode="json")
    run_here(JobSpec.from_dict({**data, "input": {**data["input"], "keep_columns": ["page"]}}))
    with pytest.raises(SpecError, match="keep_columns"):
        join(locate(str(tmp_path / "out")), locate(str(tmp_path / "to")))


@pytest.mark.usefixtures("manifest")
def test_columns_of_other_types_are_not_taken_for_pages(root: Location, tmp_path: Path) -> None:
    columns = output_schema(pa.string(), [pa.field("document", pa.string()), pa.field("page", pa.string())], False)
    rows = [page(0, "a.pdf", None, page="iv")]
    PartWriter(root, columns, 1)(pa.Table.from_pylist(rows, result_schema(columns)))
    with pytest.raises(SpecError, match="page"):
        join(root, locate(str(tmp_path / "to")))


@pytest.mark.usefixtures("manifest")
def test_a_bucket_is_joined_into(root: Location, s3_store: fs.S3FileSystem) -> None:
    s3_store.create_dir("joined")
    write(root, [page(0, "a/b.pdf", 1)])
    join(root, locate("s3://joined/to"))
    with s3_store.open_input_stream("joined/to/a/b.md") as stream:
        assert b"text of a/b.pdf 1" in stream.read()
    assert pq.read_table("joined/to/documents.parquet", filesystem=s3_store).num_rows == 1
