"""Picture folders as others lay them out: several pictures to a line, captions beside them, folders as labels."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_job.errors import InputError, SpecError
from ray_job.inputs.formats.folders.captions import MAX_BYTES
from ray_job.inputs.pictures.decode import pictures_of
from ray_job.inputs.pictures.references import read_picture
from ray_job.inputs.source import Source
from ray_job.spec import LimitsSpec

from .conftest import ids_of, opened, rows_of, write_lines


@pytest.fixture
def folder(tmp_path: Path, png: bytes) -> Path:
    root = tmp_path / "pics"
    for name in ("1.png", "2.png", "sub/3.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png)
    return root


def _shown(source: Source, row: dict[str, Any]) -> list[str]:
    """The paths of a row's pictures, each of which is there."""
    values = pictures_of(row, source.image_columns)
    for value in values:
        read_picture(value, root=source.image_root, limits=LimitsSpec())
    return [value["path"] for value in values]


@pytest.mark.parametrize("key", ["file_names", "file_name", "pair_file_names"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_several_pictures_in_a_list(folder: Path, key: str, kind: str) -> None:
    lines: list[Any] = [{key: ["1.png", "sub/3.png"], "prompt": "which?"}, {key: ["2.png"], "prompt": "what?"}]
    if kind == "jsonl":
        write_lines(folder / "metadata.jsonl", lines)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(lines), folder / "metadata.parquet")
    else:
        texts = [json.dumps(line[key]).replace('"', '""') for line in lines]
        (folder / "metadata.csv").write_text(f'{key},prompt\n"{texts[0]}",which?\n"{texts[1]}",what?\n')
    source = opened(folder, template=None)
    assert source.image_columns == ({"file_names": "images", "file_name": "image", "pair_file_names": "pair"}[key],)
    rows = rows_of(source)
    assert [(row["row_id"], _shown(source, row), row["prompt"]) for row in rows] == [
        (f"metadata.{kind}#0", ["1.png", "sub/3.png"], "which?"),
        (f"metadata.{kind}#1", ["2.png"], "what?"),
    ]


def test_several_pictures_in_columns_of_their_own(folder: Path) -> None:
    lines = [{"left_file_name": "1.png", "right_file_name": "2.png", "q": "which?"}, {"left_file_name": "sub/3.png"}]
    source = opened(write_lines(folder / "metadata.jsonl", list(lines)).parent, template="{q}")
    assert source.image_columns == ("left", "right")
    assert [_shown(source, row) for row in rows_of(source)] == [["1.png", "2.png"], ["sub/3.png"]]
    write_lines(folder / "metadata.jsonl", [{"left_file_name": "1.png", "left": 5}])
    with pytest.raises(InputError, match="column 'left' of the metadata: rename it"):
        opened(folder)


def test_a_name_of_no_picture_stays_a_text_beside_file_name(folder: Path) -> None:
    lines = [{"file_name": "1.png", "original_file_name": "IMG_7.png", "mask_file_name": "2.png"}]
    source = opened(write_lines(folder / "metadata.jsonl", list(lines)).parent, template="{file_name}?")
    assert source.image_columns == ("image", "mask")
    assert [field.name for field in source.kept] == ["original_file_name", "label"]
    row = rows_of(source)[0]
    assert row["file_name"] == "1.png", "a template may say it"
    assert (row["row_id"], row["original_file_name"], _shown(source, row)) == ("1.png", "IMG_7.png", ["1.png", "2.png"])


def test_pictures_that_no_line_names_are_rows_too(folder: Path) -> None:
    write_lines(folder / "metadata.jsonl", [{"file_names": ["1.png", "2.png"]}])
    source = opened(folder)
    assert [(row["row_id"], _shown(source, row)) for row in rows_of(source)] == [
        ("metadata.jsonl#0", ["1.png", "2.png"]),
        ("sub/3.png", ["sub/3.png"]),
    ]


def test_names_as_windows_writes_them(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,x\n.\\1.png,a\nsub\\3.png,b\n")
    assert {row["row_id"]: row["x"] for row in rows_of(opened(folder))} == {
        "1.png": "a",
        "2.png": None,
        "sub/3.png": "b",
    }


def test_a_metadata_file_may_be_the_input_itself(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,q\n1.png,what?\nsub/3.png,why?\n")
    source = opened(folder / "metadata.csv", template="{q}")
    assert [(row["row_id"], _shown(source, row), row["q"]) for row in rows_of(source)] == [
        ("1.png", ["1.png"], "what?"),
        ("sub/3.png", ["sub/3.png"], "why?"),
    ]
    assert opened(folder).taken == "3 files of format images, and 1 file about them"
    assert ids_of(opened(folder / "metadata.csv", input={"format": "csv"})) == ["metadata.csv#2", "metadata.csv#3"]


def test_values_of_a_csv_stay_as_they_are_written(folder: Path) -> None:
    (folder / "metadata.csv").write_bytes("file_name;sku;note\n1.png;00123;NA\n2.png;1e5;\n".encode("utf-16"))
    rows = rows_of(opened(folder, input={"id_column": "sku"}, template="{note}"))
    assert [(row["row_id"], row["note"]) for row in rows[:2]] == [("00123", "NA"), ("1e5", None)]
    (folder / "metadata.csv").write_bytes(b"file_name,note\n1.png,caf\xe9\n")
    assert rows_of(opened(folder, input={"encoding": "latin-1"}))[0]["note"] == "café"
    with pytest.raises(SpecError, match="column_types: no column 'n'"):
        opened(folder, input={"encoding": "latin-1", "column_types": {"n": "int"}})


def test_captions_beside_pictures_are_columns(s3: Callable[[str, bytes], str], png: bytes) -> None:
    """As img2dataset's output format `files` has it."""
    url = {"url": "http://x/1.jpg", "key": "000000000", "width": 8}
    for name, content in {
        "00000/000000000.jpg": png,
        "00000/000000000.txt": b"\xef\xbb\xbfa \xc3\xa9 cat\n",
        "00000/000000000.json": json.dumps({**url, "caption": "a cat"}).encode(),
        "00000/000000001.jpg": png,
        "00000/000000001.txt": b"a dog",
        "00000/000000002.jpg": png,
        "00000/000000003.json": b'{"key": "of no picture"}',
        "00000.parquet": b"PAR1",
        "00000_stats.json": b"{}",
    }.items():
        s3(f"laion/{name}", content)
    source = opened("s3://pictures/laion", template="{caption}")
    assert [(row["row_id"], row["caption"], row["key"], row["width"], row["label"]) for row in rows_of(source)] == [
        ("00000/000000000.jpg", "a cat", "000000000", 8, "00000"),
        ("00000/000000001.jpg", "a dog", None, None, "00000"),
        ("00000/000000002.jpg", None, None, None, "00000"),
    ]
    assert source.skipped.to_dict() == {
        "index of a folder or shard": {"files": 1, "examples": ["00000.parquet"]},
        "single JSON object": {"files": 2, "examples": ["00000/000000003.json", "00000_stats.json"]},
    }


def test_a_caption_that_cannot_be_used_is_its_pictures_error(folder: Path) -> None:
    (folder / "1.txt").write_bytes(b"caf\xe9")
    (folder / "2.json").write_text('{"broken')
    (folder / "sub" / "3.txt").write_bytes(b"x" * (MAX_BYTES + 1))
    errors = [row["_rj_read_error"]["message"] for row in rows_of(opened(folder))]
    assert [error.partition(":")[0] for error in errors] == ["1.txt", "2.json", "sub/3.txt"]
    assert "set input.encoding" in errors[0]
    (folder / "2.json").unlink()
    (folder / "sub" / "3.txt").unlink()
    assert rows_of(opened(folder, input={"encoding": "latin-1"}))[0]["caption"] == "café"


def test_a_caption_that_looks_like_a_table_is_one_all_the_same(folder: Path) -> None:
    (folder / "1.txt").write_text("a cat, red\na dog, blue\n")
    for format_ in ("auto", "images"):
        assert rows_of(opened(folder, input={"format": format_}))[0]["caption"] == "a cat, red\na dog, blue"


def test_metadata_comes_before_captions(folder: Path) -> None:
    (folder / "1.txt").write_text("from the text")
    (folder / "2.json").write_text('{"more": 1}')
    (folder / "metadata.csv").write_text("file_name,caption\n1.png,from the table\n")
    rows = rows_of(opened(folder))
    assert [(row["caption"], row["more"]) for row in rows] == [("from the table", None), (None, 1), (None, None)]


def test_the_first_folder_is_the_label(folder: Path, png: bytes) -> None:
    (folder / "sub" / "deep").mkdir()
    (folder / "sub" / "deep" / "4.png").write_bytes(png)
    rows = rows_of(opened(folder, template="Is it {label}?"))
    assert [row["label"] for row in rows] == [None, None, "sub", "sub"]
    (folder / "metadata.csv").write_text("file_name,label\n1.png,own\n")
    assert [row["label"] for row in rows_of(opened(folder))] == ["own", None, None, None]
    assert "label" not in opened(folder / "*.png", input={"keep_columns": []}).columns.names


SUFFIXES = [
    "JPG",
    "jfif",
    "jpe",
    "heic",
    "HEIF",
    "avif",
    "jp2",
    "j2k",
    "ppm",
    "pgm",
    "pbm",
    "pnm",
    "ico",
    "webp",
    "tiff",
]


def test_pictures_are_known_by_suffix_else_by_content_and_the_rest_is_named(tmp_path: Path, png: bytes) -> None:
    for suffix in SUFFIXES:
        (tmp_path / f"a.{suffix}").write_bytes(png)
    (tmp_path / "Q42").write_bytes(png)
    (tmp_path / "photo.2024").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    others = {
        ".DS_Store": b"x",
        "Thumbs.db": b"x",
        "notes.txt": b"x",
        "a.mp4": b"x",
        "b.csv": b"a,b\n1,2\n",
        "void": b"",
    }
    for name, content in {**others, "_SUCCESS": b"", "page": b"<html>", "d.pdf": b"%PDF-1.7", "o.json": b"{}"}.items():
        (tmp_path / name).write_bytes(content)
    source = opened(tmp_path)
    assert set(ids_of(source)) == {*(f"a.{suffix}" for suffix in SUFFIXES), "Q42", "photo.2024"}
    assert source.skipped.to_dict() == {
        "hidden": {"files": 1, "examples": [".DS_Store"]},
        "left by other programs": {"files": 2, "examples": ["Thumbs.db", "_SUCCESS"]},
        "of format video": {"files": 1, "examples": ["a.mp4"]},
        "of no known format": {"files": 1, "examples": ["page"]},
        "of format csv": {"files": 1, "examples": ["b.csv"]},
        "of format documents": {"files": 1, "examples": ["d.pdf"]},
        "text": {"files": 1, "examples": ["notes.txt"]},
        "single JSON object": {"files": 1, "examples": ["o.json"]},
        "empty": {"files": 1, "examples": ["void"]},
    }
    assert source.skipped.text().startswith(
        "10 files: 1 hidden (.DS_Store), 2 left by other programs (Thumbs.db, _SUCC"
    )


def test_a_column_that_is_missing_points_at_the_table_that_was_skipped(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "0.jpg").write_bytes(b"x")
    (tmp_path / "data.csv").write_text("image,q\nimg/0.jpg,a\n")
    with pytest.raises(SpecError, match=r"no column 'q'; .*\n.*and not 1 file: 1 of format csv \(data\.csv\); set it"):
        opened(tmp_path, template="{q}")
    assert opened(tmp_path, template="{q}", input={"format": "csv"}).num_rows == 1


def test_metadata_that_breaks_is_fatal(tmp_path: Path, png: bytes) -> None:
    """It does not say which pictures it leaves without their rows."""
    (tmp_path / "a.png").write_bytes(png)
    lines = "file_name,t\na.png,x\n" + "b.png,y\n" * 9
    (tmp_path / "metadata.csv").write_bytes(gzip.compress(lines.encode())[:-8])
    with pytest.raises(InputError, match=r"metadata\.csv: behind line 11 the compressed file is damaged"):
        opened(tmp_path)
