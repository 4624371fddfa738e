"""WebDataset shards: every sample a row under its key; what is broken is a row's error, and nothing is lost."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import random
import tarfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_job.errors import InputError
from ray_job.inputs.formats.tables.row_groups import PIECE_BYTES
from ray_job.inputs.formats.text.compressed import Decompressed
from ray_job.inputs.formats.webdataset import tar_members
from ray_job.inputs.source import iter_tables

from .conftest import ids_of, opened, rows_of

Entry = tuple[str, bytes]


def tar_bytes(entries: Iterable[Entry | tarfile.TarInfo], format_: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            tar.addfile(info, io.BytesIO(entry[1]))
    return buffer.getvalue()


def shard(path: Path, entries: Iterable[Entry | tarfile.TarInfo], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = tar_bytes(entries, **options)
    path.write_bytes(gzip.compress(content) if path.suffix in (".gz", ".tgz") else content)
    return path


def sample(key: str, text: str = "a text", **more: bytes) -> list[Entry]:
    return [(f"{key}.jpg", f"picture {key}".encode()), (f"{key}.txt", text.encode()), *more_of(key, more)]


def more_of(key: str, more: dict[str, bytes]) -> list[Entry]:
    return [(f"{key}.{name}", content) for name, content in more.items()]


def errors_of(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["row_id"]: row["_rj_read_error"]["message"] for row in rows if row["_rj_read_error"] is not None}


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz"])
def test_samples_are_rows_under_their_keys(tmp_path: Path, suffix: str) -> None:
    for number in range(2):
        entries = [entry for row in range(5) for entry in sample(f"{number}{row}", f"text {row}", cls=b"%d" % row)]
        shard(tmp_path / f"s-{number}.{suffix}", entries)
    source = opened(tmp_path, input={"keep_columns": ["__key__", "__url__", "txt", "cls"]})
    assert source.image_columns == ("image",)
    rows = rows_of(source)
    assert [row["row_id"] for row in rows] == [f"s-{n}.{suffix}/{n}{row}" for n in range(2) for row in range(5)]
    assert rows[7] == {
        "row_id": f"s-1.{suffix}/12", "image": b"picture 12", "__key__": "12", "txt": "text 2", "cls": "2",
        "__url__": str(tmp_path / f"s-1.{suffix}"), "_rj_read_error": None,
    }  # fmt: skip
    assert ids_of(opened(tmp_path, input={"limit": 7}))[-1] == f"s-1.{suffix}/11"
    by_key = ids_of(opened(tmp_path, input={"id_column": "__key__"}))
    assert by_key == [f"{n}{row}" for n in range(2) for row in range(5)]


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_tar_format(tmp_path: Path, format_: int) -> None:
    long = "folder.d/" + ("x" * 80 if format_ == tarfile.USTAR_FORMAT else "x" * 300)
    keys = [long, "ünï"] if format_ != tarfile.USTAR_FORMAT else [long]
    entries = [entry for key in keys for entry in sample(f"./{key}")]
    path = shard(tmp_path / "s.tar", entries, format_=format_)
    assert ids_of(opened(path)) == [f"s.tar/{key}" for key in keys]


def test_json_becomes_columns_with_keys_that_come_late(tmp_path: Path) -> None:
    items: list[dict[str, Any]] = [{"width": row, "caption": f"c{row}", "tags": ["x"]} for row in range(1500)]
    items[1400] |= {"late": "seen", "width": 2.5, "txt": "not the member", "status": "success"}
    entries = [entry for row, item in enumerate(items) for entry in sample(f"{row:04}", json=json.dumps(item).encode())]
    source = opened(
        shard(tmp_path / "s.tar", entries),
        template="{caption} {late}",
        input={"keep_columns": ["width", "json", "tags", "txt"]},
    )
    rows = rows_of(source, 256)
    assert errors_of(rows) == {}
    assert [rows[0]["late"], rows[1400]["late"]] == [None, "seen"]
    assert [rows[1399]["width"], rows[1400]["width"]] == [1399.0, 2.5]
    assert (rows[3]["caption"], rows[3]["tags"], rows[1400]["txt"]) == ("c3", '["x"]', "a text")
    assert json.loads(rows[1400]["json"]) == items[1400]


def test_broken_json_and_text_are_their_rows_errors(tmp_path: Path) -> None:
    entries = [
        *sample("a", json=b'{"n": 1}'), *sample("b", json=b'{"n": '), *sample("c", json=b"[1]"),
        ("d.jpg", b"d"), ("d.txt", b"\xff\xfe"), ("d.json", b'{"n": 4}'),
    ]  # fmt: skip
    rows = rows_of(opened(shard(tmp_path / "s.tar", entries), template="{n} {txt}", input={"keep_columns": []}))
    assert [(row["row_id"], row["n"]) for row in rows] == [
        ("s.tar/a", 1), ("s.tar/b", None), ("s.tar/c", None), ("s.tar/d", 4),
    ]  # fmt: skip
    found = errors_of(rows)
    assert list(found) == ["s.tar/b", "s.tar/c", "s.tar/d"]
    assert "its json" in found["s.tar/b"]
    assert "must be a JSON object, got list" in found["s.tar/c"]
    assert "'txt' holds text that is not UTF-8" in found["s.tar/d"]
    ids = ids_of(opened(tmp_path / "s.tar", input={"id_column": "n", "keep_columns": []}))
    assert ids == ["1", "s.tar/b", "s.tar/c", "4"]


def test_kinds_of_pictures_are_one_column_unless_a_sample_has_both(tmp_path: Path) -> None:
    entries = [("a.jpg", b"a"), ("b.PNG", b"b"), ("c.webp", b"c"), ("d.txt", b"no picture")]
    source = opened(shard(tmp_path / "one" / "s.tar", entries))
    assert [row["image"] for row in rows_of(source)] == [b"a", b"b", b"c", None]
    entries = [("a.jpg", b"photo"), ("a.png", b"mask"), ("b.png", b"mask"), ("c.seg.png", b"x"), ("c.jpg", b"photo")]
    source = opened(shard(tmp_path / "two" / "s.tar", entries), input={"image_columns": ["image", "png", "seg.png"]})
    assert [(row["image"], row["png"], row["seg.png"]) for row in rows_of(source)] == [
        (b"photo", b"mask", None), (None, b"mask", None), (b"photo", None, b"x"),
    ]  # fmt: skip


def test_the_only_picture_of_a_sample_is_its_picture(tmp_path: Path) -> None:
    entries = [("a.jpg", b"a"), ("b.v2.PNG", b"b"), ("c.jpg", b"c"), ("c.seg.png", b"mask"), ("d.x.jpg", b"d")]
    source = opened(shard(tmp_path / "s.tar", entries))
    assert source.image_columns == ("image",)
    assert [row["image"] for row in rows_of(source)] == [b"a", b"b", b"c", b"d"]


def test_pictures_in_other_columns_are_named(tmp_path: Path) -> None:
    entries = [("a.jpg", b"photo"), ("a.png", b"mask"), ("b.png", b"?"), ("c.left.gif", b"l"), ("c.right.gif", b"r")]
    rows = rows_of(opened(shard(tmp_path / "s.tar", [*entries, ("d.txt", b"none")])))
    assert [row["image"] for row in rows] == [b"photo", None, None, None]
    errors = errors_of(rows)
    assert list(errors) == ["s.tar/b", "s.tar/c"], "what has none at all fails as any row whose picture is null"
    assert "pictures (png) are in other columns than image; set input.image_columns: [image, png]" in errors["s.tar/b"]
    assert "[image, left.gif, right.gif]" in errors["s.tar/c"]
    assert rows[1]["_rj_read_error"]["code"] == "image_missing"


def test_members_of_no_sample_are_counted_and_links_fail_their_row(
    tmp_path: Path,
) -> None:
    folder, link = tarfile.TarInfo("folder"), tarfile.TarInfo("b.jpg")
    folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "/etc/passwd"
    entries = [folder, ("README", b"x"), ("__meta__/x.json", b"{}"), ("folder/.DS_Store", b""), *sample("a"), link]
    source = opened(shard(tmp_path / "s.tar", entries))
    rows = rows_of(source)
    assert [row["row_id"] for row in rows] == ["s.tar/a", "s.tar/b"]
    assert errors_of(rows) == {"s.tar/b": "member 'b.jpg' is a link or a device, not a file"}
    assert source.skipped.text() == "3 files: 3 members of shards that belong to no sample (README, …)"


def test_a_key_that_comes_again_is_an_error_and_the_others_are_rows(tmp_path: Path) -> None:
    entries = [
        *sample("a"),
        ("b.jpg", b"1"),
        ("b.jpg", b"2"),
        *sample("a"),
        ("c.jpg", b""),
        ("d.jpg", b""),
        ("c.txt", b""),
    ]
    rows = rows_of(opened(shard(tmp_path / "s.tar", entries)))
    assert [row["row_id"] for row in rows] == [f"s.tar/{key}" for key in ("a", "b", "a#1", "c", "d", "c#1")]
    found = errors_of(rows)
    assert list(found) == ["s.tar/b", "s.tar/a#1", "s.tar/c", "s.tar/c#1"]
    assert "two members 'b.jpg'" in found["s.tar/b"]
    assert "comes again" in found["s.tar/a#1"]
    assert "stand apart" in found["s.tar/c"]
    assert rows[0]["image"] == b"picture a"


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_shard_that_is_cut_anywhere_gives_the_rows_before_and_one_error(tmp_path: Path, suffix: str) -> None:
    entries = [entry for row in range(6) for entry in sample(f"k{row}", "x" * 700)]
    whole = tar_bytes(entries)
    end = 6 * 2 * 512 + 6 * (512 + 1024)  # headers, pictures, texts
    dice = random.Random(0)
    cuts = [*range(512, end + 512, 512), *(dice.randrange(1, end) for _ in range(20))]
    for cut in cuts:
        content = whole[:cut]
        path = tmp_path / f"s.{suffix}"
        path.write_bytes(gzip.compress(content, 1) if suffix == "tar.gz" else content)
        if cut < 512:
            with pytest.raises(InputError, match="not a tar archive"):
                opened(path)
            continue
        rows = rows_of(opened(path))
        num_begun = min(6, (cut - 512) // (2 * 512 + 512 + 1024) + 1)  # whose first header is whole
        good = [f"s.{suffix}/k{row}" for row in range(num_begun)]
        assert [row["row_id"] for row in rows] == good, cut
        assert all(row["image"] == f"picture k{number}".encode() for number, row in enumerate(rows[:-1]))
        is_whole = cut >= end + 512
        assert list(errors_of(rows)) == ([] if is_whole else good[-1:]), cut


def test_a_gzip_stream_that_is_cut_gives_the_rows_before_and_one_error(tmp_path: Path) -> None:
    dice = random.Random(0)
    content = gzip.compress(tar_bytes([(f"k{row}.jpg", dice.randbytes(100_000)) for row in range(20)]))
    (tmp_path / "s.tar.gz").write_bytes(content[: len(content) // 2])
    rows = rows_of(opened(tmp_path))
    assert 5 < len(rows) < 15
    assert list(errors_of(rows)) == [f"s.tar.gz/k{len(rows) - 1}"]
    assert "damaged or cut short" in errors_of(rows)[rows[-1]["row_id"]]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_what_a_storage_fails_at_is_no_damage_of_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """It fails behind the first rows."""
    dice = random.Random(0)
    path = shard(tmp_path / f"s.{suffix}", [(f"k{row}.jpg", dice.randbytes(10_000)) for row in range(20)])
    source = opened(tmp_path)
    size, stored = path.stat().st_size, path.read_bytes()

    class Failing(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            if self.tell() > size // 2:
                raise OSError("When reading: AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28")
            return super().readinto(buffer)

        def read(self, count: int | None = -1) -> bytes:
            data = bytearray(count or 0)
            return bytes(data[: self.readinto(data)])

        def size(self) -> int:
            return size

    if suffix == "tar":
        monkeypatch.setattr(tar_members, "open_input", lambda _: Failing(stored))
    else:
        failing = lambda _: pa.CompressedInputStream(pa.PythonFile(Failing(stored), "r"), "gzip")  # noqa: E731
        monkeypatch.setattr(Decompressed, "_opened", failing)
    with pytest.raises(InputError, match=rf"s\.{suffix}: cannot be read: .*AWS Error NETWORK.* Run the job again"):
        rows_of(source)
    monkeypatch.undo()
    assert errors_of(rows_of(source)) == {}


@pytest.mark.parametrize("size", [-512, -1536, -(2**40)])
def test_a_size_below_zero_ends_a_shard_with_an_error(tmp_path: Path, size: int) -> None:
    content = bytearray(tar_bytes([(f"k{row}.jpg", b"x" * 100) for row in range(5)]))
    header = content[2 * 1024 : 2 * 1024 + 512]
    header[124:136] = size.to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[2 * 1024 : 2 * 1024 + 512] = header
    (tmp_path / "a.tar").write_bytes(content)
    rows = rows_of(opened(tmp_path))
    assert [row["row_id"] for row in rows] == ["a.tar/k0", "a.tar/k1"]
    assert "'k2.jpg' has a size below zero" in errors_of(rows)["a.tar/k1"]


def test_a_damaged_header_ends_a_shard_with_an_error_and_not_in_silence(tmp_path: Path) -> None:
    content = bytearray(tar_bytes([(f"k{row}.jpg", b"x" * 100) for row in range(5)]))
    content[2 * 1024 : 2 * 1024 + 512] = b"?" * 512
    shard(tmp_path / "b.tar", sample("other"))
    (tmp_path / "a.tar").write_bytes(content)
    rows = rows_of(opened(tmp_path))
    assert [row["row_id"] for row in rows] == ["a.tar/k0", "a.tar/k1", "b.tar/other"]
    assert "no header" in errors_of(rows)["a.tar/k1"]


def test_shards_joined_by_cat_are_read_whole(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar_bytes(sample("a")) + tar_bytes(sample("b")))
    assert ids_of(opened(tmp_path)) == ["s.tar/a", "s.tar/b"]


def test_what_is_no_tar_is_named(tmp_path: Path) -> None:
    for content in (b"not a tar" * 100, b""):
        (tmp_path / "s.tar").write_bytes(content)
        with pytest.raises(InputError, match=r"s\.tar: not a tar archive|no rows"):
            opened(tmp_path)


def test_large_shards_are_cut_at_samples_and_any_split_is_read_alone(tmp_path: Path) -> None:
    entries = [entry for row in range(10_000) for entry in sample(f"{row:05}")]
    source = opened(shard(tmp_path / "s.tar", entries))
    assert [split.num_rows for split in source.splits] == [4096, 4096, 1808]
    assert len(pickle.dumps(source)) < 20_000, "however many rows"
    ids = [row for table in source.read(source.splits[1], 500) for row in table.column("row_id").to_pylist()]
    assert ids == [f"s.tar/{row:05}" for row in range(4096, 8192)]
    assert len(ids_of(source, 256)) == 10_000


def test_pieces_are_small_and_a_picture_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    dice = random.Random(0)
    entries = [(f"k{row:02}.jpg", dice.randbytes(2**20)) for row in range(40)]
    entries.insert(20, ("huge.jpg", bytes(9 * 2**20)))
    source = opened(shard(tmp_path / "s.tar", entries), limits={"max_image_bytes": 8 * 2**20})
    tables = list(iter_tables(source, 256))
    assert max(table.nbytes for table in tables) < PIECE_BYTES + 2 * 2**20
    assert sum(table.num_rows for table in tables) == 41
    errors = [row["_rj_read_error"] for table in tables for row in table.to_pylist() if row["_rj_read_error"]]
    assert [error["code"] for error in errors] == ["image_too_large"]


def test_webdataset_on_s3(s3: Callable[[str, bytes], str]) -> None:
    for number in range(2):
        content = tar_bytes([entry for row in range(4) for entry in sample(f"{number}{row}")])
        s3(f"wds/s-{number}.tar", content)
    rows = rows_of(opened("s3://pictures/wds/"))
    assert [row["row_id"] for row in rows] == [f"s-{n}.tar/{n}{row}" for n in range(2) for row in range(4)]
    assert rows[5]["image"] == b"picture 11"


@pytest.mark.data
def test_what_its_own_writer_writes_is_read_as_its_own_reader_reads_it(tmp_path: Path, png: bytes) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(f"{tmp_path}/s-%03d.tar", maxcount=4, verbose=0) as writer:
        for row in range(10):
            writer.write({"__key__": f"k{row}", "png": png, "json": {"n": row}, "cls": row, "txt": f"text {row}"})
    found = rows_of(opened(tmp_path, template="{n}", input={"keep_columns": ["__key__", "cls", "txt", "json"]}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # its reader leaves files open
        expected = list(webdataset.WebDataset(sorted(map(str, tmp_path.glob("*.tar"))), shardshuffle=False))
    assert len(found) == len(expected) == 10
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["row_id"] == f"{Path(theirs['__url__']).name}/{theirs['__key__']}"
        assert (ours["image"], ours["txt"].encode()) == (theirs["png"], theirs["txt"])
        assert (ours["cls"].encode(), ours["json"].encode()) == (theirs["cls"], theirs["json"])
        assert ours["n"] == json.loads(theirs["json"])["n"]


def test_an_empty_shard_has_no_rows(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", [])
    with pytest.raises(InputError, match="no rows in 1 file of format webdataset"):
        opened(tmp_path)
    shard(tmp_path / "b.tar", sample("0"))
    assert ids_of(opened(tmp_path)) == ["b.tar/0"]


@pytest.mark.parametrize("codec", ["zstd", "bz2", "gzip"])
def test_the_compression_is_told_by_content(tmp_path: Path, codec: str) -> None:
    with pa.output_stream(tmp_path / "a.tar", compression=codec) as stream:
        stream.write(tar_bytes([*sample("0"), *sample("1")]))
    assert ids_of(opened(tmp_path)) == ["a.tar/0", "a.tar/1"]


def test_pictures_with_a_first_part_in_their_names_are_shown(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", [("0.left.jpg", b"l"), ("0.right.png", b"r"), ("0.txt", b"which?")])
    source = opened(tmp_path, template="{txt}")
    assert source.image_columns == ("left.jpg", "right.png")
    assert [(row["left.jpg"], row["right.png"]) for row in rows_of(source)] == [(b"l", b"r")]


def test_numbers_that_no_float_holds_stay_what_they_are(tmp_path: Path) -> None:
    values = {"0": b'{"n": 9007199254740993}', "1": b'{"n": 0.5}', "2": b'{"n": 1}'}
    shard(tmp_path / "a.tar", [entry for key, text in values.items() for entry in sample(key, json=text)])
    assert [row["n"] for row in rows_of(opened(tmp_path, template="{n}"))] == ["9007199254740993", "0.5", "1"]
