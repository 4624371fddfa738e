"""Folders of documents: every page and every file is a row, whatever else lies beside it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from ray_job.errors import SpecError
from ray_job.inputs.identity import input_identity
from ray_job.rows import READ_ERROR

from ..conftest import ids_of, opened, rows_of
from . import files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    (root / "a").mkdir(parents=True)
    (root / "a" / "report.pdf").write_bytes(files.text_pdf(["one", "two", "three"]))
    (root / "bad.pdf").write_bytes(files.HTML)
    (root / "b.PDF").write_bytes(files.text_pdf(["<|image_1|> four"]))
    (root / "empty.pdf").write_bytes(files.empty_pdf())
    (root / "locked.pdf").write_bytes(files.encrypted_pdf("sesame", ["five", "six"]))
    (root / "nothing.pdf").touch()
    (root / "scan.tif").write_bytes(files.tiff((4, 3), (5, 6)))
    return root


def documents(folder: Path | str, template: str = "Read it.", **spec: Any) -> Any:
    return opened(folder, template=template, input={"format": "documents", **spec.pop("input", {})}, documents=spec)


def codes_of(source: Any) -> dict[str, str]:
    return {row["row_id"]: row[READ_ERROR]["code"] for row in rows_of(source) if row[READ_ERROR] is not None}


PAGES = ["a/report.pdf#page=1", "a/report.pdf#page=2", "a/report.pdf#page=3", "b.PDF#page=1"]
BAD = {
    "bad.pdf": "document_unreadable",
    "empty.pdf": "document_empty",
    "locked.pdf": "document_encrypted",
    "nothing.pdf": "document_empty",
}
SCANS = ["scan.tif#page=1", "scan.tif#page=2"]


def test_each_page_is_a_row_and_each_file_that_has_none_an_error(folder: Path) -> None:
    source = documents(folder)
    assert ids_of(source) == [*PAGES, *BAD, *SCANS]
    assert codes_of(source) == BAD
    assert [field.name for field in source.kept] == ["document", "page", "num_pages"]
    row = rows_of(source)[1]
    assert row["image"] == {"bytes": None, "path": "a/report.pdf#page=2"}
    assert (row["document"], row["page"], row["num_pages"]) == ("a/report.pdf", 2, 3)
    error = rows_of(source)[4]
    assert (error["document"], error["page"], error["num_pages"]) == ("bad.pdf", None, None)


def test_a_document_is_a_row_or_several_with_so_many_pages(folder: Path) -> None:
    source = documents(folder, pages_per_row=2, template="{page_text}")
    assert ids_of(source) == [
        "a/report.pdf#pages=1-2",
        "a/report.pdf#pages=3",
        "b.PDF#pages=1",
        *BAD,
        "scan.tif#pages=1-2",
    ]
    first, second, *_ = rows_of(source)
    assert [picture["path"] for picture in first["image"]] == PAGES[:2]
    assert (first["page"], first["last_page"], first["page_text"]) == (1, 2, "one\n\ntwo")
    assert (second["page"], second["last_page"], second["page_text"]) == (3, 3, "three")
    assert codes_of(source) == BAD


def test_pages_are_chosen_and_a_document_without_them_is_an_error(folder: Path) -> None:
    source = documents(folder, pages="2-")
    assert ids_of(source) == [*PAGES[1:3], "b.PDF", *BAD, SCANS[1]]
    assert codes_of(source) == {"b.PDF": "document_empty", **BAD}
    assert ids_of(documents(folder, pages="1,-1", pages_per_row=2))[0] == "a/report.pdf#pages=1,3"


def test_a_limit_counts_rows_and_looks_no_further(folder: Path) -> None:
    assert ids_of(documents(folder, input={"limit": 2})) == PAGES[:2]
    assert ids_of(documents(folder, input={"limit": 5})) == [*PAGES, "bad.pdf"]


def test_a_page_has_its_text_only_where_it_is_used(folder: Path) -> None:
    assert "page_text" not in documents(folder).columns.names
    kept = documents(folder, input={"keep_columns": ["page_text"]})
    assert [row["page_text"] for row in rows_of(kept)] == [
        "one",
        "two",
        "three",
        "<|image_1|> four",
        *[None] * 4,
        "",
        "",
    ]


def test_a_page_whose_text_cannot_be_read_is_an_error_alone(tmp_path: Path) -> None:
    (tmp_path / "liar.pdf").write_bytes(files.liar_pdf(3))
    source = documents(tmp_path, template="{page_text}")
    assert [row["page_text"] for row in rows_of(source)] == ["only", None, None]
    assert codes_of(source) == dict.fromkeys(["liar.pdf#page=2", "liar.pdf#page=3"], "page_unreadable")


def test_a_password_from_the_environment_opens_and_is_shown_nowhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PDF_PASSWORD", "sesame")
    source = documents(folder, password_env="PDF_PASSWORD", template="{page_text}")
    rows = {row["row_id"]: row.get("page_text") for row in rows_of(source)}
    assert (rows["locked.pdf#page=1"], rows["locked.pdf#page=2"], rows["b.PDF#page=1"]) == (
        "five",
        "six",
        "<|image_1|> four",
    )
    assert "sesame" not in repr(source)
    worker = pickle.loads(pickle.dumps(source))
    monkeypatch.delenv("PDF_PASSWORD")
    assert {row["row_id"]: row.get("page_text") for row in rows_of(worker)} == rows


def test_a_document_that_needs_no_password_opens_whatever_the_job_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those do that are encrypted only to forbid printing."""
    monkeypatch.setenv("PDF_PASSWORD", "sesame")
    (tmp_path / "open.pdf").write_bytes(files.encrypted_pdf("", ["one"]))
    (tmp_path / "other.pdf").write_bytes(files.encrypted_pdf("another", ["two"]))
    source = documents(tmp_path, password_env="PDF_PASSWORD", template="{page_text}")
    opened, locked = rows_of(source)
    assert (opened["row_id"], opened["page_text"]) == ("open.pdf#page=1", "one")
    assert "no password that was given opens it" in locked[READ_ERROR]["message"]


def test_a_document_with_too_many_pages_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "long.pdf").write_bytes(files.text_pdf([f"{n}" for n in range(5)]))
    (tmp_path / "liar.pdf").write_bytes(files.liar_pdf(1_000_000))
    source = documents(tmp_path, max_pages=4)
    assert codes_of(source) == dict.fromkeys(["liar.pdf", "long.pdf"], "document_unreadable")
    assert ids_of(documents(tmp_path, max_pages=4, pages="-1"))[1] == "long.pdf#page=5"


def test_many_documents_are_cut_into_splits_that_hold_every_row(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.pdf").write_bytes(files.text_pdf(["x"] * (number % 7 + 1)))
    (tmp_path / "long.pdf").write_bytes(files.text_pdf(["x"] * 600))
    source = documents(tmp_path)
    expected = [f"{n:02}.pdf#page={page}" for n in range(40) for page in range(1, n % 7 + 2)]
    assert ids_of(source, 50) == [*expected, *(f"long.pdf#page={page}" for page in range(1, 601))]
    assert len(source.splits) > 3
    assert max(split.num_rows for split in source.splits) <= 256


def test_another_file_is_another_input(folder: Path) -> None:
    before = input_identity(documents(folder))
    assert before == input_identity(documents(folder))
    (folder / "b.PDF").write_bytes(files.text_pdf(["changed"]))
    assert input_identity(documents(folder)) != before


def test_an_id_column_is_refused(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"input\.id_column"):
        documents(folder, input={"id_column": "document"})


def test_a_folder_of_pdf_files_is_one_of_documents_without_a_word(folder: Path) -> None:
    (folder / "scan.tif").unlink()
    assert ids_of(opened(folder)) == [*PAGES, *BAD]


def test_a_bucket_is_counted_from_pieces_of_its_files(
    s3: Callable[[str, bytes], str], s3_store: fs.S3FileSystem
) -> None:
    filler = b"<< /Length 3000000 >>\nstream\n" + bytes(3_000_000) + b"\nendstream"
    large = files.pdf([files.CATALOG, b"<< /Type /Pages /Kids [4 0 R] /Count 1 >>", files.FONT, files.page(), filler])
    s3("docs/large.pdf", large)
    s3("docs/small.pdf", files.text_pdf(["one", "two"]))
    source = documents("s3://pictures/docs", template="{page_text}")
    assert ids_of(source) == ["large.pdf#page=1", "small.pdf#page=1", "small.pdf#page=2"]
    assert [row["page_text"] for row in rows_of(source)] == ["", "one", "two"]
