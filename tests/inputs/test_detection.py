"""What files hold, by name and by content, and what they make up together."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_job.errors import InputError
from ray_job.inputs.detection import detect
from ray_job.inputs.files import find_files
from ray_job.inputs.skipped import Skipped
from ray_job.inputs.table_folders import find_table
from ray_job.spec import InputSpec
from ray_job.spec.input import Format
from ray_job.storage.globs import braces_expanded
from ray_job.storage.places import locate

from .conftest import ids_of, opened

TABLE = pa.table({"x": [1, 2]})


def _parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(TABLE, sink)
    return bytes(sink.getvalue())


def _feather() -> bytes:
    sink = io.BytesIO()
    pyarrow.feather.write_feather(TABLE, sink)
    return sink.getvalue()


def _stream() -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return bytes(sink.getvalue())


def _tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("0.txt"))
    return sink.getvalue()


def _picture(format_: str) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 10, 10)).save(sink, format_)
    return sink.getvalue()


PICTURES = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF"]


@pytest.mark.parametrize("format_", PICTURES)
def test_pictures_are_known_by_content(format_: str) -> None:
    assert detect("Q42", _picture(format_)) == "images"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (_parquet(), "parquet"),
        (_feather(), "arrow"),
        (_stream(), "arrow"),
        (_tar(), "webdataset"),
        (gzip.compress(_tar()), "webdataset"),
        (b"%PDF-1.7\n", "documents"),
        (b"\xef\xbb\xbf\n%PDF-1.4", "documents"),
        (b'{"a": 1}\n{"a": 2}\n', "jsonl"),
        (b'{"a": "' + b"x" * 70_000, "jsonl"),
        ('\ufeff{"a": 1}\r\n{"a": 2}'.encode("utf-16"), "jsonl"),
        (gzip.compress(b'{"a": 1}\n{"a": 2}\n'), "jsonl"),
        (b'[{"a": 1}]', "json"),
        (b" [\n  {\n", "json"),
        (b'{"a": 1}', "object"),
        (b'{\n "a": 1\n}', "object"),
        (b"a,b\n1,2\n", "csv"),
        (b"a;b\n1;2\n", "csv"),
        (bz2.compress(b"a\tb\n1\t2\n"), "tsv"),
        (b"a word\nand another", "other"),
        (b"\0\1\2\3", "other"),
        (gzip.compress(b"\0\1"), "other"),
        (b"\x1f\x8b broken", "other"),
        (b"", "empty"),
        (b"[1, 2]", "other"),
        (b"<html>,\n<b>,\n", "csv"),
        (b'{"a": "%PDF-1.7 and PAR1"}\n{"a": 2}\n', "jsonl"),
        (b"PAR1,x\n1,2\n", "csv"),
        (b"P1\tP2\n1\t2\n", "tsv"),
        (b"BM,GIF\n1,2\n", "csv"),
        (b"P1 # made by hand\n# twice\n3 2\n0 1 0 1 0 1\n", "images"),
        (b"P1 " + b"# " * 8000, "other"),  # no text takes long
    ],
)
def test_content_tells_where_a_name_does_not(content: bytes, kind: str) -> None:
    for name in ("part-00000", "export.2024"):
        assert detect(name, content) == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.parquet", "parquet"), ("A.JSONL.GZ", "jsonl"), ("a.ndjson.zst", "jsonl"), ("a.csv.bz2", "csv"),
        ("a.tsv", "tsv"), ("a.tab", "tsv"), ("a.feather", "arrow"), ("a.tar", "webdataset"), ("a.tgz", "webdataset"),
        ("a.pdf", "documents"), ("a.HEIC", "images"), ("a.txt", "text"), ("a.mp4", "video"), ("a.zip", "other"),
        ("x/.git/a.png", "hidden"), (".DS_Store", "hidden"), ("._a.jpg", "hidden"), ("_SUCCESS", "marker"),
        ("a.crc", "marker"), ("Thumbs.db", "marker"), ("_committed_123", "marker"), ("_metadata", "marker"),
    ],
)  # fmt: skip
def test_names_tell(name: str, kind: str) -> None:
    assert detect(name, b"") == kind


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["_delta_log/00000000000000000000.json", "a.parquet"], ("delta", "")),
        (["t/_delta_log/_last_checkpoint", "t/a.parquet", "b.parquet"], ("delta", "t")),
        (["metadata/v1.metadata.json", "data/a.parquet"], ("iceberg", "")),
        (["t.lance/_versions/1.manifest", "t.lance/data/a.lance"], ("lance", "t.lance")),
        (["state.json", "dataset_info.json", "data-00000-of-00001.arrow"], ("hf", "")),
        (["dataset_dict.json", "train/state.json", "train/dataset_info.json"], ("hf", "")),
        (["state.json", "x/dataset_info.json"], None),
        (["a.parquet", "metadata/a.json"], None),
    ],
)
def test_folders_of_tables(names: list[str], found: tuple[Format, str] | None) -> None:
    root = locate("/data")
    if found is None or found[1] == "":
        assert find_table(InputSpec(path=("/data",)), names, root) == (found and found[0])
        return
    with pytest.raises(InputError, match=f"/data/{found[1]}: this folder is a table of format {found[0]}"):
        find_table(InputSpec(path=("/data",)), names, root)


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_tables_files_are_never_read_as_loose_ones(tmp_path: Path) -> None:
    folder = _write(tmp_path / "all", {"t/_delta_log/0.json": b"{}", "t/a.parquet": _parquet()})
    found = find_files(InputSpec(path=(str(folder / "t"),)))
    assert (found.format, str(found.root), len(found.files)) == ("delta", str(folder / "t"), 2)
    for spec in (InputSpec(path=(str(folder),)), InputSpec(path=(str(folder / "t"),), format="parquet")):
        with pytest.raises(InputError, match=r"all/t: this folder is a table of format delta"):
            find_files(spec)


LINES, ARRAY, OBJECT, CSV = b'{"a": 1}\n{"a": 2}\n', b'[{"a": 1}]', b'{"a": 1}', b"a,b\n1,2\n"


@pytest.mark.parametrize(
    ("files", "format_", "names"),
    [
        ({"a.parquet": b"", "b.csv": CSV, "c.json": LINES, "d.pdf": b""}, "parquet", ["a.parquet"]),
        ({"a.png": b"", "b.csv": CSV, "c.pdf": b"", "d.json": ARRAY}, "images", ["a.png"]),
        ({"a.jsonl": b"", "config.json": OBJECT, "b.json": ARRAY}, "jsonl", ["a.jsonl", "b.json"]),
        ({"0.json": LINES, "1.json": OBJECT}, "jsonl", ["0.json", "1.json"]),
        ({"0.json": ARRAY, "1.json": OBJECT}, "json", ["0.json", "1.json"]),
        ({"0.json": OBJECT}, "json", ["0.json"]),
        ({"a.csv": b"", "b.tsv": b"", "meta.json": OBJECT}, "csv", ["a.csv", "b.tsv"]),
        ({"00.parquet": b"", "00.tar": b"", "00_stats.json": OBJECT}, "webdataset", ["00.tar"]),
        ({"part-0": _parquet(), "part-1": _parquet(), "_SUCCESS": b""}, "parquet", ["part-0", "part-1"]),
        ({"part-0": LINES, ".part-0.crc": b"x", "_x/part-1": LINES}, "jsonl", ["part-0"]),
        ({"x.feather": b"", "y.arrow": b""}, "arrow", ["x.feather", "y.arrow"]),
        ({"a.pdf": b"", "b.txt": b""}, "documents", ["a.pdf"]),
    ],
)
def test_files_of_a_folder_decide_together(
    tmp_path: Path, files: dict[str, bytes], format_: Format, names: list[str]
) -> None:
    found = find_files(InputSpec(path=(str(_write(tmp_path, files)),)))
    assert (found.format, [file.name for file in found.files]) == (format_, names)
    assert len(found.files) + found.skipped.num_files == len(files)


def test_a_given_format_looks_into_files_of_any_other_name(tmp_path: Path) -> None:
    files = {"a.txt": LINES, "b.dat": LINES, "c.json": ARRAY, "d.txt": b"words", "e.md": b"", "f.csv": CSV}
    found = find_files(InputSpec(path=(str(_write(tmp_path, files)),), format="jsonl"))
    assert [file.name for file in found.files] == ["a.txt", "b.dat", "c.json"]
    assert found.skipped.to_dict()["text"] == {"files": 2, "examples": ["d.txt", "e.md"]}


def test_a_file_that_is_named_is_looked_into_whatever_it_is_called(tmp_path: Path) -> None:
    _write(tmp_path, {"questions.txt": LINES, "rows.bin": CSV, "notes.txt": b"just words"})
    assert find_files(InputSpec(path=(str(tmp_path / "questions.txt"),))).format == "jsonl"
    assert find_files(InputSpec(path=(str(tmp_path / "rows.bin"),))).format == "csv"
    with pytest.raises(InputError, match=r"no file is known to hold rows; found 1 file: 1 text \(notes\.txt\)"):
        find_files(InputSpec(path=(str(tmp_path / "notes.txt"),)))


def test_pipes_are_not_opened_and_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    _write(tmp_path, {"a.png": b""})
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    found = find_files(InputSpec(path=(str(tmp_path),)))
    assert found.skipped.to_dict() == {"of no known format": {"files": 2, "examples": ["gone", "pipe"]}}


def test_first_bytes_on_a_bucket(s3: Callable[[str, bytes], str]) -> None:
    for number in range(20):
        s3(f"spark/part-{number:05}", LINES)
    s3("spark/_SUCCESS", b"")
    source = opened("s3://pictures/spark")
    assert (source.num_rows, source.skipped.num_files) == (40, 1)


def test_skipped_files_are_few_names_and_all_counts() -> None:
    skipped = Skipped.of((f"{number}.txt", "text") for number in range(1000))
    assert skipped.text() == "1000 files: 1000 text (0.txt, 1.txt, 2.txt, …)"
    assert Skipped.of_dict(skipped.to_dict()) == skipped


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("a{1..3}b", ["a1b", "a2b", "a3b"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]),
        ("x{a,{b,c}}", ["xa", "xb", "xc"]),
        ("{a,}z", ["az", "z"]),
        ("{a}{}{..}{1..}", ["{a}{}{..}{1..}"]),
        ("plain", ["plain"]),
    ],
)
def test_braces_stand_for_several_paths(text: str, expanded: list[str]) -> None:
    assert braces_expanded(text) == expanded


def test_shards_by_braces(tmp_path: Path) -> None:
    _write(tmp_path, {f"shard-{number:06}.jsonl": OBJECT for number in range(12)})
    _write(tmp_path, {"odd{1,2}.jsonl": OBJECT})
    assert ids_of(opened(f"{tmp_path}/shard-{{000008..000011}}.jsonl")) == [
        f"shard-{number:06}.jsonl#1" for number in range(8, 12)
    ]
    assert opened(f"{tmp_path}/{{shard-00000[0-2],odd*}}.jsonl").num_rows == 4
    assert opened(f"{tmp_path}/odd{{1,2}}.jsonl").num_rows == 1, "a name that exists is only itself"
    with pytest.raises(InputError, match=r"shard-000012\.jsonl: no such file"):
        opened(f"{tmp_path}/shard-{{000011..000012}}.jsonl")
