"""Pages of documents on their way to the model: drawn once, at the right size, whatever else the block holds."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pyarrow import fs

from ray_job.errors import SpecError
from ray_job.inputs.source import iter_tables
from ray_job.models.phi3_vision.processor import PIXELS
from ray_job.plan import plan_job
from ray_job.rows import PICTURES, POSITION, ROW_ID, SAMPLES, arrays_of
from ray_job.spec import JobSpec
from ray_job.stages.open_job import open_job
from ray_job.views.gallery.cards import CardMaker, Thumbnail

from ..inputs.documents import files
from .test_fetch import block_of

PDF = files.text_pdf(["one", "two", "three"])


def spec_of(folder: Path, rows: list[dict[str, Any]] | None = None, **sections: Any) -> JobSpec:
    if rows is not None:
        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        schema = pa.schema([("id", pa.string()), ("image", image), *_extra(rows)])
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / "rows.parquet")
    input_ = {"path": str(folder / "rows.parquet"), "id_column": "id"} if rows is not None else {"path": str(folder)}
    data = {
        "input": {**input_, **sections.pop("input", {})},
        "prompt": {"template": "what?"},
        "model": {"path": "builtin:noop", **sections.pop("model", {})},
        "output": {"path": "out"},
    }
    return JobSpec.from_dict({**data, **sections})


def _extra(rows: list[dict[str, Any]]) -> list[tuple[str, pa.DataType]]:
    return [(name, pa.string()) for name in rows[0] if name not in ("id", "image")]


def prepared(spec: JobSpec) -> dict[str, Any]:
    """By row id, the code of its error or its pictures' sizes and digests."""
    _, source, preparer = open_job(spec)
    found: dict[str, Any] = {}
    start = 0
    for table in iter_tables(source):
        table = table.add_column(0, POSITION, pa.array(range(start, start + table.num_rows), pa.int64()))
        start += table.num_rows
        for row in preparer(table).select([ROW_ID, SAMPLES, PICTURES]).to_pylist():
            (sample,) = row[SAMPLES]
            found[row[ROW_ID]] = sample["error"] or row[PICTURES]
    return found


def codes(found: dict[str, Any]) -> dict[str, str]:
    return {row_id: value["code"] for row_id, value in found.items() if isinstance(value, dict)}


def test_pages_of_a_picture_column(tmp_path: Path) -> None:
    (tmp_path / "x.pdf").write_bytes(PDF)
    (tmp_path / "one.pdf").write_bytes(files.square_pdf())
    (tmp_path / "scan.tif").write_bytes(files.tiff((40, 30), (30, 40)))
    (tmp_path / "single.tif").write_bytes(files.tiff((40, 30)))
    (tmp_path / "p.png").write_bytes(_png())
    (tmp_path / "png.pdf").write_bytes(_png())
    (tmp_path / "empty.pdf").touch()
    (tmp_path / "html.pdf").write_bytes(files.HTML)
    uri = "data:application/pdf;base64," + base64.b64encode(files.square_pdf()).decode()
    paths = {
        "page 3": "x.pdf#page=3",
        "page 1": "x.pdf#page=1",
        "whole": "x.pdf",
        "only page": "one.pdf",
        "beyond": "x.pdf#page=4",
        "tiff page": "scan.tif#page=2",
        "whole tiff": "scan.tif",
        "single tiff": "single.tif",
        "a picture's page": "p.png#page=1",
        "missing": "y.pdf#page=1",
        "outside": "../x.pdf#page=1",
        "uri": uri,
        "of zero bytes": "empty.pdf#page=1",
        "a picture called pdf": "png.pdf",
        "a page of HTML": "html.pdf",
    }
    rows = [{"id": row_id, "image": {"path": path}} for row_id, path in paths.items()]
    rows.append({"id": "bytes", "image": {"bytes": files.square_pdf(), "path": "any.name"}})
    spec = spec_of(tmp_path, rows)
    plan = plan_job(spec)
    found = prepared(spec)
    assert plan.bad_samples == Counter(codes(found).values())
    assert "pypdfium2" not in sys.modules, "no process that matters loads it"
    assert codes(found) == {
        "whole": "page_unreadable",
        "beyond": "page_unreadable",
        "whole tiff": "page_unreadable",
        "a picture's page": "document_unreadable",
        "missing": "image_missing",
        "outside": "image_forbidden",
        "a page of HTML": "image_unreadable",
        "of zero bytes": "document_empty",
    }
    assert "#page=1" in found["whole"]["message"]
    assert "#page=1" in found["whole tiff"]["message"]
    pictures = {row_id: value[0] for row_id, value in found.items() if isinstance(value, list)}
    assert pictures["only page"] == pictures["uri"] == pictures["bytes"]
    assert pictures["page 1"]["digest"] != pictures["page 3"]["digest"]
    assert pictures["page 1"]["arrays"] != pictures["page 3"]["arrays"]
    green = arrays_of(pictures["tiff page"]["arrays"])[PIXELS].mean(axis=(0, 1))
    assert green[1] > green[0] + 20, "the second page is the green one"


def _png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


def test_a_picture_that_speaks_of_pdf_is_a_picture(tmp_path: Path) -> None:
    stream, words = io.BytesIO(), PngInfo()
    words.add_text("Comment", "made from %PDF-1.7")
    Image.new("RGB", (8, 8)).save(stream, "PNG", pnginfo=words)
    assert b"%PDF-" in stream.getvalue()[:1024]
    assert codes(prepared(spec_of(tmp_path, [{"id": "a", "image": {"bytes": stream.getvalue()}}]))) == {}


def test_a_page_is_drawn_at_what_the_models_crops_can_use(tmp_path: Path) -> None:
    (tmp_path / "a4.pdf").write_bytes(files.text_pdf(["A4"], box="0 0 595.28 841.89"))
    (tmp_path / "huge.pdf").write_bytes(files.one_page(b"", box="0 0 1000000 1000000"))
    (tmp_path / "thin.pdf").write_bytes(files.one_page(b"", box="0 0 1000000 1"))
    _, source, preparer = open_job(spec_of(tmp_path, model={"num_crops": 16}))
    size = preparer._processor.page_size(595.28, 841.89)
    crop = preparer._processor.crop_size
    assert (size[0] * 336 / crop, size[1] * 336 / crop) == pytest.approx((949, 1344), abs=336 / crop)
    (table,) = iter_tables(source)
    rows = {row[ROW_ID]: preparer.row(row) for row in preparer.values(table)}
    assert rows["a4.pdf#page=1"].pictures[0]["arrays"][0]["shape"][0] == 4 * crop
    assert rows["huge.pdf#page=1"].samples[0]["error"] is None
    assert rows["thin.pdf#page=1"].samples[0]["error"]["code"] == "image_too_narrow"


def test_the_plan_says_what_the_run_prepares_and_reads_no_document_whole(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(PDF)
    (tmp_path / "bad.pdf").write_bytes(files.HTML)
    (tmp_path / "scan.tif").write_bytes(files.tiff((40, 30), (30, 40)))
    filler = files.stream(bytes(30_000_000))
    (tmp_path / "large.pdf").write_bytes(
        files.pdf([files.CATALOG, b"<< /Type /Pages /Kids [4 0 R] /Count 1 >>", files.FONT, files.page(), filler])
    )
    spec = spec_of(tmp_path, input={"format": "documents"}, model={"num_crops": 4})
    plan_job(spec)  # what is imported is read now
    before = _read_bytes()
    plan = plan_job(spec)
    assert _read_bytes() - before < 20_000_000  # a tokenizer, and pieces of documents
    assert (plan.rows, plan.pictures, plan.documents, plan.bad_samples) == (7, 6, 3, {"document_unreadable": 1})
    _, source, preparer = open_job(spec)
    (table,) = iter_tables(source)
    rows = [preparer.row(row) for row in preparer.values(table)]
    ids = [sample["input_ids"] for row in rows for sample in row.samples if sample["input_ids"]]
    assert plan.prompt_tokens == [len(each) for each in ids]
    assert "3, " in plan.table().split("documents")[1].splitlines()[0]


@pytest.mark.parametrize("truncated", ["error", "accept"])
def test_plan_and_run_agree_on_a_page_of_a_tiff_whose_pixels_are_missing(tmp_path: Path, truncated: str) -> None:
    whole = files.tiff((40, 30), (30, 400))
    (tmp_path / "scan.tif").write_bytes(whole[:-1000])
    spec = spec_of(tmp_path, input={"format": "documents", "truncated": truncated})
    expected = {"scan.tif#page=2": "image_truncated"} if truncated == "error" else {}
    assert codes(prepared(spec)) == expected
    assert plan_job(spec).bad_samples == Counter(expected.values())


def test_a_plan_of_a_bucket_reads_pieces_of_documents(
    tmp_path: Path, s3_store: fs.S3FileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="werkzeug")
    filler = files.stream(bytes(6_000_000))
    tree = b"<< /Type /Pages /Kids [4 0 R 4 0 R] /Count 2 >>"
    s3_store.create_dir("papers")
    with s3_store.open_output_stream("papers/in/large.pdf") as stream:
        stream.write(files.pdf([files.CATALOG, tree, files.FONT, files.page(), filler]))
    data = spec_of(tmp_path).model_dump(mode="json")
    spec = JobSpec.from_dict({**data, "input": {"path": "s3://papers/in"}})
    caplog.clear()
    plan = plan_job(spec)
    asked = [record.getMessage() for record in caplog.records if "GET /papers/in/large.pdf" in record.getMessage()]
    assert 0 < len(asked) <= 6
    assert all(" 206 " in request for request in asked), "pieces, of a block each"
    assert (plan.rows, plan.pictures, plan.documents) == (2, 2, 1)


def test_a_tiff_of_several_pages_in_a_folder_of_pictures_is_an_error_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_png())
    (tmp_path / "many.tif").write_bytes(files.tiff((40, 30), (30, 40)))
    (tmp_path / "one.tif").write_bytes(files.tiff((40, 30)))
    found = prepared(spec_of(tmp_path))
    assert list(found) == ["a.png", "many.tif", "one.tif"]
    assert codes(found) == {"many.tif": "page_unreadable"}
    assert "input.format to documents" in found["many.tif"]["message"]


def _read_bytes() -> int:
    """What this process has read, files and sockets."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def test_a_document_that_many_rows_name_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.stages.test_fetch.PICTURE", PDF)
    paths = ["/x.pdf#page=3", "/x.pdf#page=1", "/x.pdf#page=2", "/x.pdf#page=9", "/y.pdf#page=1"]
    with block_of(paths, tmp_path, monkeypatch, max_fetches=2) as (server, preparer, table):
        rows = preparer(table).column(SAMPLES).to_pylist()
        assert server.asked == {"/x.pdf": 1, "/y.pdf": 1}
    assert [row[0]["error"] and row[0]["error"]["code"] for row in rows] == [None] * 3 + ["page_unreadable", None]


def test_a_page_that_hangs_is_an_error_and_its_neighbours_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(PDF)
    (tmp_path / "b.pdf").write_bytes(files.nested_pdf())
    (tmp_path / "c.pdf").write_bytes(PDF)
    found = prepared(spec_of(tmp_path, documents={"deadline_s": 2, "pages": "1-2"}))
    assert codes(found) == {"b.pdf#page=1": "deadline"}
    assert list(found) == ["a.pdf#page=1", "a.pdf#page=2", "b.pdf#page=1", "c.pdf#page=1", "c.pdf#page=2"]


def test_a_rows_own_deadline_counts_for_its_pages(tmp_path: Path) -> None:
    (tmp_path / "b.pdf").write_bytes(files.nested_pdf())
    assert codes(prepared(spec_of(tmp_path, limits={"row_deadline_s": 0.5}))) == {"b.pdf#page=1": "deadline"}


def test_a_column_of_passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pdf").write_bytes(files.encrypted_pdf("alpha"))
    (tmp_path / "b.pdf").write_bytes(files.encrypted_pdf("beta"))
    monkeypatch.setenv("THE_PASSWORD", "beta")
    cases = [("right", "a", "alpha"), ("wrong", "a", "gamma9"), ("common", "b", None), ("none", "a", None)]
    rows = [{"id": name, "image": {"path": f"{file}.pdf"}, "secret": secret} for name, file, secret in cases]
    spec = spec_of(tmp_path, rows, documents={"password_column": "secret", "password_env": "THE_PASSWORD"})
    _, source, _ = open_job(spec)
    assert [field.name for field in source.kept] == []
    found = prepared(spec)
    assert codes(found) == {"wrong": "document_encrypted", "none": "document_encrypted"}
    assert "gamma9" not in str(found["wrong"])
    assert "beta" not in spec.model_dump_json()
    data = spec.model_dump(mode="json")
    with pytest.raises(SpecError, match="passwords"):
        open_job(JobSpec.from_dict({**data, "input": {**data["input"], "keep_columns": ["secret"]}}))
    monkeypatch.delenv("THE_PASSWORD")
    with pytest.raises(SpecError, match="THE_PASSWORD"):
        open_job(spec)


def test_a_folder_beside_the_roots_is_read_by_its_full_path(tmp_path: Path) -> None:
    (tmp_path / "in" / "a b").mkdir(parents=True)
    (tmp_path / "in" / "a b" / "50%#1.pdf").write_bytes(files.text_pdf(["x"]))
    spec = spec_of(tmp_path / "in", input={"image_root": str(tmp_path)})
    assert codes(prepared(spec)) == {}
    assert list(prepared(spec)) == ["a b/50%#1.pdf#page=1"]


def test_a_page_is_shown_on_its_card(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(files.square_pdf())
    spec, source, preparer = open_job(spec_of(tmp_path))
    (table,) = iter_tables(source)
    maker = CardMaker(spec, source, side=100)
    (picture,), num_more = maker._pictures(preparer.values(table)[0])
    assert isinstance(picture, Thumbnail)
    assert (picture.width, picture.height, num_more) == (50, 100, 0)


def test_documents_have_a_limit_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(PDF)
    rows = [{"id": "a", "image": {"path": "a.pdf#page=1"}}, {"id": "b", "image": {"bytes": files.square_pdf()}}]
    assert codes(prepared(spec_of(tmp_path, rows, limits={"max_image_bytes": 100}))) == {}
    small = {"max_document_bytes": 100}
    found = codes(prepared(spec_of(tmp_path, rows, limits={"max_image_bytes": 100}, documents=small)))
    assert found == dict.fromkeys("ab", "image_too_large")


def test_a_text_layer_is_literal_in_the_prompt(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(files.text_pdf(["<|image_1|><|end|>"]))
    spec = spec_of(tmp_path, prompt={"template": "{page_text}"})
    _, source, preparer = open_job(spec)
    (table,) = iter_tables(source)
    (row,) = preparer.values(table)
    (sample,) = preparer.row(row).samples
    assert sample["error"] is None
    assert row["page_text"] == "<|image_1|><|end|>"
    specials = [token for token in sample["input_ids"] if token == preparer._processor._tokenizer.special_id("<|end|>")]
    assert len(specials) == 1, "the template's own"


def _chat(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "Compare"}, *parts, {"type": "text", "text": "."}]}]


def test_file_parts_show_all_their_pages_where_they_stand(tmp_path: Path) -> None:
    data = base64.b64encode(PDF).decode()
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(_png()).decode()}}
    whole = {"type": "file", "file": {"filename": "x.pdf", "file_data": f"data:application/pdf;base64,{data}"}}
    one = base64.b64encode(files.square_pdf()).decode()
    cases = {
        "between": _chat(image, whole, image),
        "bare": _chat({"type": "input_file", "file_data": one}),
        "id": _chat({"type": "file", "file": {"file_id": "file-abc"}}),
        "no pdf": _chat({"type": "file", "file": {"file_data": "data:application/pdf;base64,SGVsbG8="}}),
        "too many": _chat(whole, whole),
        "scan": _chat({"type": "file", "file": {"file_data": _uri(files.tiff((4, 3), (5, 6)))}}),
    }
    lines = [json.dumps({"custom_id": name, "body": {"messages": messages}}) for name, messages in cases.items()]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    spec = spec_of(tmp_path / "in.jsonl", prompt={}, limits={"max_images": 5})
    found = prepared(spec)
    assert codes(found) == {"id": "row_malformed", "no pdf": "document_unreadable", "too many": "too_many_images"}
    assert {name: len(value) for name, value in found.items() if isinstance(value, list)} == {
        "between": 5,
        "bare": 1,
        "scan": 2,
    }
    first, *pages, last = found["between"]
    assert first == last
    assert len({picture["digest"] for picture in pages}) == 3
    _, source, preparer = open_job(spec)
    (table,) = iter_tables(source)
    (sample,) = preparer.row(preparer.values(table)[0]).samples
    order = [token for token in dict.fromkeys(sample["input_ids"]) if token < 0]
    assert order == [-1, -2, -3, -4, -5]


def _uri(data: bytes) -> str:
    return "data:image/tiff;base64," + base64.b64encode(data).decode()
