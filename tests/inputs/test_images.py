"""Picture folders: rows, metadata of three kinds, and everything that may be missing."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_job.errors import ErrorCode, InputError, RowError
from ray_job.inputs.pictures.references import read_picture
from ray_job.spec import LimitsSpec

from .conftest import ids_of, opened, rows_of, write_lines


@pytest.fixture
def folder(tmp_path: Path, png: bytes) -> Path:
    root = tmp_path / "pics"
    for name in ("b.png", "a.JPG", "sub/deep/c.webp", "sub/_MG_1.tif", "sub/d.gif", ".hidden.png", ".git/e.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png)
    (root / "readme.md").touch()
    return root


NAMES = ["a.JPG", "b.png", "sub/_MG_1.tif", "sub/d.gif", "sub/deep/c.webp"]


def test_each_picture_is_a_row_called_by_its_path(folder: Path) -> None:
    source = opened(folder)
    assert ids_of(source, 2) == NAMES
    assert source.skipped.num_files == 3
    assert source.image_columns == ("image",)
    assert [row["image"] for row in rows_of(source)] == [{"bytes": None, "path": name} for name in NAMES]
    assert ids_of(opened(f"{folder}/**/*.[gw]*")) == ["sub/d.gif", "sub/deep/c.webp"]
    assert ids_of(opened(folder / "b.png")) == ["b.png"]
    assert ids_of(opened(folder, input={"limit": 2})) == NAMES[:2]


def test_a_picture_that_is_not_there_is_a_row_that_fails_alone(folder: Path) -> None:
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "loop").symlink_to(folder)
    source = opened(folder)
    row = rows_of(source)[2]
    assert row["row_id"] == "gone.png"
    with pytest.raises(RowError) as caught:
        read_picture(row["image"], root=source.image_root, limits=LimitsSpec())
    assert caught.value.code == ErrorCode.IMAGE_MISSING
    assert source.num_rows == 6


def _csv(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [",".join(rows[0]), *(",".join("" if v is None else f"{v}" for v in row.values()) for row in rows)]
    (path / "metadata.csv").write_text("\n".join(lines) + "\n")


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    write_lines(path / "metadata.jsonl", list(rows))


def _parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path / "metadata.parquet")


@pytest.mark.parametrize("write", [_csv, _jsonl, _parquet])
def test_metadata_joins_by_file_name(folder: Path, write: Callable[[Path, list[dict[str, Any]]], None]) -> None:
    write(
        folder,
        [
            {"file_name": "b.png", "caption": "a bee", "n": 1},
            {"file_name": "./sub/d.gif", "caption": None, "n": 2},
            {"file_name": "gone.png", "caption": "gone", "n": 3},
            {"file_name": "b.png", "caption": "again", "n": 4},
            {"file_name": None, "caption": "nameless", "n": 5},
        ],
    )
    types = {"n": "int"} if write is _csv else None
    source = opened(folder, template="{caption}", input={"column_types": types})
    rows = rows_of(source)
    metadata = next(folder.glob("metadata.*")).name
    assert [(row["row_id"], row["caption"], row["n"]) for row in rows] == [
        ("a.JPG", None, None),
        ("b.png", "a bee", 1),
        ("b.png#1", "again", 4),
        ("gone.png", "gone", 3),
        ("sub/_MG_1.tif", None, None),
        ("sub/d.gif", None, 2),
        ("sub/deep/c.webp", None, None),
        (f"{metadata}#4", "nameless", 5),
    ]
    assert source.columns.field("n").type == pa.int64()
    assert [field.name for field in source.kept] == ["caption", "n", "label"]
    assert rows[-1]["image"] is None


def test_each_folder_has_its_own_metadata_and_columns_add_up(folder: Path) -> None:
    _csv(folder, [{"file_name": "b.png", "x": 1}])
    _jsonl(folder / "sub", [{"file_name": "deep/c.webp", "y": "why"}, {"file_name": "../a.JPG", "y": "up"}])
    rows = {row["row_id"]: (row["x"], row["y"]) for row in rows_of(opened(folder))}
    assert rows["b.png"] == ("1", None)
    assert rows["sub/deep/c.webp"] == (None, "why")
    assert rows["a.JPG"] == (None, "up")
    _parquet(folder, [{"file_name": "b.png"}])
    with pytest.raises(InputError, match=r"metadata\.csv and metadata\.parquet; keep one"):
        opened(folder)


def test_a_file_name_out_of_the_folder_stays_a_row_and_is_not_read(folder: Path, png: bytes) -> None:
    (folder.parent / "secret.png").write_bytes(png)
    _csv(folder, [{"file_name": "../secret.png", "x": 1}, {"file_name": "http://host/x.png", "x": 2}])
    source = opened(folder)
    rows = [row for row in rows_of(source) if row["x"]]
    assert len(rows) == 2
    for row in rows:
        with pytest.raises(RowError) as caught:
            read_picture(row["image"], root=source.image_root, limits=LimitsSpec())
        assert caught.value.code == ErrorCode.IMAGE_FORBIDDEN


def test_ids_from_metadata(folder: Path) -> None:
    _csv(folder, [{"file_name": name, "key": f"k{i}"} for i, name in enumerate(NAMES[1:])])
    rows = rows_of(opened(folder, input={"id_column": "key"}))
    assert [row["row_id"] for row in rows] == ["a.JPG", "k0", "k1", "k2", "k3"]
    assert [row["_rj_read_error"] is None for row in rows] == [False, True, True, True, True]
    _csv(folder, [{"file_name": name, "key": i} for i, name in enumerate(NAMES)])
    numbers = {"id_column": "key", "column_types": {"key": "int"}}
    source = opened(folder, input=numbers)
    assert source.id_field.type == pa.int64()
    assert ids_of(source) == [0, 1, 2, 3, 4]
    _csv(folder, [{"file_name": name, "key": i} for i, name in enumerate(NAMES[1:])])
    with pytest.raises(InputError, match=r"absent for picture 'a\.JPG'"):
        opened(folder, input=numbers)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "filename,x\nb.png,1\n", "no column 'file_name'.*did you mean 'filename'"),
        ("metadata.csv", "", "no column 'file_name'"),
        ("metadata.jsonl", "[1]\n", "line 1: must be a JSON object"),
        ("metadata.parquet", "text", "broken metadata: "),
        ("metadata.csv", "file_name,image\nb.png,1\n", "'image' of the metadata: rename it"),
    ],
)
def test_broken_metadata_says_where(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=message):
        opened(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "file_name,x\nb.png,1\nnew.png,1,2\n", "metadata.csv, line 3: has 3 fields"),
        ("metadata.csv", 'file_name,x\n"b.png,1\nnew.png,1\n', "metadata.csv, line 2: a quote is opened"),
        ("metadata.jsonl", '{"file_name": "new.png"}\n\n{"file', "metadata.jsonl, line 3: not JSON"),
        ("metadata.jsonl", '{"file_name": "new.png"}\n{"file_name": "b.png", "x": "\\ud800"}', "'x' holds half of a"),
    ],
)
def test_a_broken_line_of_metadata_is_a_row_with_its_error(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    rows = rows_of(opened(folder))
    wrong = [row["_rj_read_error"]["message"] for row in rows if row["_rj_read_error"] is not None]
    assert len(wrong) == 1
    assert message in wrong[0]
    assert {*NAMES, "new.png"} <= {row["row_id"] for row in rows}


def test_another_image_root_gets_full_paths(folder: Path, png: bytes) -> None:
    source = opened(folder, input={"image_root": str(folder.parent)})
    row = rows_of(source)[1]
    assert row["row_id"] == "b.png"
    assert read_picture(row["image"], root=source.image_root, limits=LimitsSpec()) == png


def test_splits_of_a_large_folder_are_small_and_complete(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_job.inputs.formats.folders.images.SPLIT_ROWS", 2)
    source = opened(folder, input={"limit": 3})
    assert [split.num_rows for split in source.splits] == [2, 1]
    assert all(len(pickle.dumps(split)) < 3000 for split in source.splits)
    assert ids_of(pickle.loads(pickle.dumps(source)), 1) == NAMES[:3]


def test_pictures_on_s3_with_metadata(s3: Callable[[str, bytes], str], png: bytes) -> None:
    for name in ("x 1%.png", "sub/y.png"):
        s3(f"folder/{name}", png)
    s3("folder/metadata.csv", b"file_name,caption\nx 1%.png,hello\n")
    for image_root in (None, "s3://pictures"):
        source = opened("s3://pictures/folder", input={"image_root": image_root}, template="{caption}")
        rows = rows_of(source)
        assert [(row["row_id"], row["caption"]) for row in rows] == [("sub/y.png", None), ("x 1%.png", "hello")]
        assert [read_picture(row["image"], root=source.image_root, limits=LimitsSpec()) for row in rows] == [png, png]
