"""JSON that is not one object to a line: arrays, pretty-printed objects, other encodings, compression by content."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import pickle
import tempfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_job.errors import InputError, SpecError
from ray_job.inputs.formats.text.compressed import Decompressed
from ray_job.inputs.formats.text.json_items import iter_items

from .conftest import ids_of, opened, rows_of

ROWS = [{"x": 1, "t": 'a "]}" b'}, {"x": 2, "t": "{[\\"}, {"x": 3, "t": "é\u2028", "o": {"k": [{}, []]}}]


def _errors(rows: list[dict[str, Any]]) -> list[str | None]:
    return [row["_rj_read_error"] and row["_rj_read_error"]["message"] for row in rows]


def _zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "part-00000"])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS, ensure_ascii=False),
        json.dumps(ROWS, indent=2),
        "\ufeff  " + json.dumps(ROWS, indent="\t").replace("\n", "\r\n"),
        "".join(json.dumps(row) for row in ROWS),
        "\r".join(json.dumps(row) for row in ROWS),
        "\n".join(json.dumps(row, indent=1) for row in ROWS),
        "[" + ",\n".join(json.dumps(row) for row in ROWS) + "\n]\n",
        "".join(json.dumps([row]) + "\n" for row in ROWS),
        "\n".join(json.dumps(row) for row in ROWS),
    ],
)
def test_objects_are_rows_however_they_are_written(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    rows = rows_of(opened(tmp_path))
    assert [(row["x"], row["t"]) for row in rows] == [(row["x"], row["t"]) for row in ROWS]
    assert [row["row_id"] for row in rows] == [f"{name}#{number}" for number in (1, 2, 3)]
    assert rows[2]["o"] == '{"k": [{}, []]}'
    assert _errors(rows) == [None] * 3


def test_a_single_object_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps({"x": 1}, indent=2))
    assert ids_of(opened(tmp_path)) == ["one.json#1"]


def test_a_large_array_is_cut_and_its_splits_are_read_anywhere(
    s3: Callable[[str, bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_job.inputs.formats.text.record_splits.SPLIT_ROWS", 2)
    uri = s3("array/a.json", json.dumps([{"x": n} for n in range(5)], indent=1).encode())
    source = pickle.loads(pickle.dumps(opened(uri)))
    assert [split.num_rows for split in source.splits] == [2, 2, 1]
    assert [(row["row_id"], row["x"]) for row in rows_of(source)] == [(f"a.json#{n + 1}", n) for n in range(5)]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ('[{"x": 1}, {"x": }, {"x": 3}]', [None, "item 2: not JSON", None]),
        ('[{"x": 1}, 5, {"x": 3}]', [None, "item 2: must be a JSON object, got int", None]),
        ('[{"x": 1}, {"x": 2}, {"x', [None, None, "item 3: the file ends inside it"]),
        ('[{"x": 1}, {"x": 2}', [None, None, "item 3: the file ends inside its array"]),
        ('[{"x": 1},\n {"x": "a\n"\n },\n {"x": 3}]', [None, "item 2: not JSON", None]),
        ('[{"x": 1},\n {"x": "2},\n {"x": 3}]', [None, "item 2: holds a text that is not closed"]),
    ],
)
def test_a_broken_item_is_a_row_with_its_error(
    tmp_path: Path, text: str, problems: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text(text)
    whole = rows_of(opened(tmp_path / "a.json"))
    for message, problem in zip(_errors(whole), problems, strict=True):
        assert (message is None) == (problem is None)
        assert message is None or f"a.json, {problem}" in message
    monkeypatch.setattr("ray_job.inputs.formats.text.record_splits.SPLIT_ROWS", 1)
    source = opened(tmp_path / "a.json")
    assert len(source.splits) == len(problems)
    assert rows_of(source) == whole


def test_an_item_longer_than_the_cap_is_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"x": "s"}, {"x": "l" * 3_000_000}, {"x": "after"}]))
    rows = rows_of(opened(tmp_path / "a.json", limits={"max_image_bytes": 1000}))
    assert [row["x"] for row in rows] == ["s", None, "after"]
    assert "longer than 4000 bytes" in rows[1]["_rj_read_error"]["message"]


class _Dribble(io.BytesIO):
    """Gives a few bytes at a time."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(3)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('a"\\{}[],é\n'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab"{'), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text('k"]'), JSON, max_size=3), max_size=4), st.sampled_from([None, 1]))
def test_items_are_those_of_the_array_however_it_is_read(items: list[Any], indent: int | None) -> None:
    data = json.dumps(items, indent=indent, ensure_ascii=False).encode()
    found = list(iter_items(io.BytesIO(data), 10_000))
    assert [json.loads(item.content or b"") for item in found] == items
    assert [data[item.start : item.end] for item in found] == [item.content for item in found]
    assert list(iter_items(_Dribble(data), 10_000)) == found


@settings(deadline=None)
@given(st.text('{}[]",:\\\n 1é', max_size=30))
def test_any_text_has_the_same_items_however_it_is_read(text: str) -> None:
    data = text.encode()
    found = list(iter_items(io.BytesIO(data), 10))
    assert list(iter_items(_Dribble(data), 10)) == found
    assert all(0 <= item.start <= item.end <= len(data) for item in found)
    if not set(text) <= set("[], \n"):
        assert found, "what is no separator is a row"


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, _zstd])
@pytest.mark.parametrize("name", ["a.jsonl", "A.JSONL.GZ", "a.jsonl.zst", "part-00000"])
def test_compression_is_told_by_content(tmp_path: Path, name: str, compress: Callable[[bytes], bytes]) -> None:
    lines = [json.dumps({"x": n}).encode() + b"\n" for n in range(3000)]
    (tmp_path / name).write_bytes(compress(b"".join(lines[:2000])) + compress(b"".join(lines[2000:])))
    rows = rows_of(opened(tmp_path), 1000)
    assert [row["x"] for row in rows] == list(range(3000)), "what stands behind the first compressed part is read too"
    assert rows[-1]["row_id"] == f"{name}#3000"


_NUM_LINES = 12_000  # more than one block of bzip2 in each framing
_LINES = [json.dumps({"x": n, "t": "é" * (n % 7)}, ensure_ascii=False) for n in range(_NUM_LINES)]
_DAMAGED = "the compressed file is damaged or cut short here"


def _checked_up_to_a_break(path: Path, framing: str, compressed: bytes, at: int, decompress: Any) -> None:
    """Every row that the bytes before the break hold is there, and one more says where it is."""
    path.write_bytes(compressed[:at])
    held = decompress(compressed[:at])
    rows = rows_of(opened(path), 1000)
    values = [json.loads(line)["x"] for line in _LINES]
    num_whole = held.count(b"}" if framing == "items" else b"\n") - (framing == "table")
    assert [row["x"] for row in rows[:-1]] == [v if framing != "table" else str(v) for v in values[:num_whole]]
    assert _errors(rows[:-1]) == [None] * num_whole
    assert [row["row_id"] for row in rows] == [row["row_id"] for row in rows_of(opened(path), 97)]
    unit, number = ("item", num_whole + 1) if framing == "items" else ("line", num_whole + 1 + (framing == "table"))
    message = str(_errors(rows)[-1])
    assert message.startswith(f"{path.name}, {unit} {number}: {_DAMAGED} ("), message
    assert rows[-1]["row_id"] == f"{path.name}#{number}"


@pytest.mark.parametrize("kind", ["gz", "bz2", "zst"])
@pytest.mark.parametrize("framing", ["lines", "items", "table"])
def test_a_compressed_file_that_breaks_gives_what_is_before(tmp_path: Path, kind: str, framing: str) -> None:
    text = {
        "lines": "".join(line + "\n" for line in _LINES),
        "items": f"[{', '.join(_LINES)}]",
        "table": "x,t\n" + "".join(f"{n},{'é' * (n % 7)}\n" for n in range(_NUM_LINES)),
    }[framing].encode()
    name = f"a.{'csv' if framing == 'table' else 'json'}.{kind}"
    if kind == "zst":
        first, rest = (_zstd(part) for part in (text[:70_000], text[70_000:]))
        for data in (first + rest[:-1], first + rest[: len(rest) // 2]):  # within the first frame nothing may be there
            (tmp_path / name).write_bytes(data)
            rows = rows_of(opened(tmp_path / name), 1000)
            assert len(rows) > 1000
            assert _errors(rows[:-1]) == [None] * (len(rows) - 1)
            assert _DAMAGED in str(_errors(rows)[-1])
        return
    compress, decompress = {
        "gz": (gzip.compress, lambda data: zlib.decompressobj(31).decompress(data)),
        "bz2": (partial(bz2.compress, compresslevel=1), lambda data: bz2.BZ2Decompressor().decompress(data)),
    }[kind]
    compressed = compress(text)
    for at in (len(compressed) - 1, len(compressed) - 9, len(compressed) * 9 // 10):
        _checked_up_to_a_break(tmp_path / name, framing, compressed, at, decompress)


def test_a_broken_file_is_one_row_and_its_neighbours_are_read(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"x": 1}\n{"x": 2}\n')
    (tmp_path / "a.jsonl.gz").write_bytes(whole)
    (tmp_path / "b.jsonl.gz").write_bytes(whole[:12])
    (tmp_path / "c.jsonl.gz").write_bytes(whole + b"what is behind it")
    rows = rows_of(opened(tmp_path))
    assert [(row["row_id"], row["x"]) for row in rows] == [
        ("a.jsonl.gz#1", 1), ("a.jsonl.gz#2", 2), ("b.jsonl.gz#1", None),
        ("c.jsonl.gz#1", 1), ("c.jsonl.gz#2", 2), ("c.jsonl.gz#3", None),
    ]  # fmt: skip
    assert [place for place, error in enumerate(_errors(rows)) if error] == [2, 5]
    for path in tmp_path.glob("[ac]*"):
        path.unlink()
    with pytest.raises(InputError, match=rf"holds no JSON object.*\(the first row: {_DAMAGED}"):
        opened(tmp_path)
    (tmp_path / "b.jsonl.gz").rename(tmp_path / "b.csv.gz")
    with pytest.raises(InputError, match=rf"its header cannot be read: b.csv.gz, line 1: {_DAMAGED}"):
        opened(tmp_path)


def test_what_a_storage_fails_at_is_no_break(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def read(self, size: int) -> bytes:
            raise OSError("AWS Error NETWORK_CONNECTION during GetObject operation")

    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"x": 1}\n'))
    monkeypatch.setattr(Decompressed, "_opened", lambda self: Failing())
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: cannot be read: AWS Error NETWORK"):
        opened(tmp_path)


def test_a_named_file_of_an_unknown_compression_says_what_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lzma.compress(b'{"x": 1}\n'))
    with pytest.raises(InputError, match="holds no JSON object"):
        opened(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        ('{"x": "é1"}\r\n{"x": "é2"}\r\n'.encode("utf-16"), None),
        (codecs.BOM_UTF16_BE + '{"x": "é1"}\n{"x": "é2"}'.encode("utf-16-be"), "latin-1"),
        (codecs.BOM_UTF8 + '{"x": "é1"}\n{"x": "é2"}'.encode(), None),
        ('{"x": "é1"}\n{"x": "é2"}'.encode("latin-1"), "latin-1"),
        ('{"x": "é1"}\n{"x": "é2"}'.encode("utf-16-le"), "utf-16-le"),
        (gzip.compress('[{"x": "é1"}, {"x": "é2"}]'.encode("utf-16")), None),
    ],
)
def test_encodings(tmp_path: Path, data: bytes, encoding: str | None) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    rows = rows_of(opened(tmp_path / "a.jsonl", input={"encoding": encoding}))
    assert [row["x"] for row in rows] == ["é1", "é2"]
    assert [row["row_id"] for row in rows] == ["a.jsonl#1", "a.jsonl#2"]


def test_what_cannot_be_decoded_is_its_rows_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"x": 1}\n{"x": "é"}\n{"x": 3}\n'.encode("latin-1"))
    rows = rows_of(opened(tmp_path / "a.jsonl"))
    assert [message and message[:32] for message in _errors(rows)] == [None, "a.jsonl, line 2: not UTF-8 at by", None]
    (tmp_path / "a.jsonl").write_bytes('{"x": "é"}'.encode("latin-1"))
    with pytest.raises(InputError, match=r"the first row: not UTF-8 at byte 7; .*, set input\.encoding"):
        opened(tmp_path / "a.jsonl")
    odd = '{"x": 1}\n{"x": "a'.encode("utf-16") + b"\x00\xd8\n\x00"  # half a pair, then an end within the object
    (tmp_path / "a.jsonl").write_bytes(odd + b"{")
    rows = rows_of(opened(tmp_path / "a.jsonl"))
    assert [message is None for message in _errors(rows)] == [True, False, False]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([{"x": "é"}, {"x": None}, {"y": ["]"]}]), min_size=1, max_size=9), st.integers(1, 4))
def test_ids_and_rows_do_not_depend_on_splits(items: list[Any], split_rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "a.json"
        path.write_text(json.dumps(items, indent=1))
        whole = rows_of(opened(path), 100)
        patch.setattr("ray_job.inputs.formats.text.record_splits.SPLIT_ROWS", split_rows)
        assert rows_of(opened(path), 2) == whole


@pytest.mark.parametrize(
    ("data", "format_"),
    [(b"PAR1\x15\x04", "parquet"), (b"\x89PNG\r\n\x1a\n....", "images"), (b"%PDF-1.7", "documents")],
)
def test_a_name_that_its_content_contradicts_is_named(tmp_path: Path, data: bytes, format_: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(InputError, match=rf"a\.jsonl: holds {format_}, whatever its name says"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("values", "read"),
    [
        (["9007199254740993", "1.5", "2"], ["9007199254740993", "1.5", "2"]),
        (["9007199254740992", "1.5"], [9007199254740992.0, 1.5]),
        (["9007199254740993", "2", "null"], [9007199254740993, 2, None]),
        (["9007199254740993", '"a"'], ["9007199254740993", "a"]),
    ],
)
def test_whole_numbers_that_no_float_holds_stay_what_they_are(
    tmp_path: Path, values: list[str], read: list[Any]
) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"n": {value}}}\n' for value in values))
    assert [row["n"] for row in rows_of(opened(tmp_path, template="{n}"))] == read


def test_a_json_text_sequence(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\x1e{"x": 1}\n\x1e{"x": 2}\n')
    assert [row["x"] for row in rows_of(opened(tmp_path, template="{x}"))] == [1, 2]


def test_nothing_behind_what_cannot_be_decoded_is_lost(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"x": 1}\n{"x": "\x1b(Q"}\n{"x": 3}\n')
    rows = rows_of(opened(tmp_path / "a.jsonl", input={"encoding": "iso2022_jp"}))
    assert [message is None for message in _errors(rows)] == [True, False, True]
    (tmp_path / "a.jsonl").write_bytes(
        '{"x": 1}\n{"x": "'.encode("utf-32") + b"\xff" * 4 + '"}\n{"x": 3}'.encode("utf-32-le")
    )
    rows = rows_of(opened(tmp_path / "a.jsonl"))
    assert [message is None for message in _errors(rows)] == [True, False, True]


def test_the_encoding_that_is_said_tells_the_format_too(tmp_path: Path) -> None:
    (tmp_path / "part-0").write_bytes('{"x": "é1"}\n{"x": "é2"}\n'.encode("utf-16-le"))
    assert [row["x"] for row in rows_of(opened(tmp_path, input={"encoding": "utf-16-le"}))] == ["é1", "é2"]


@pytest.mark.parametrize("encoding", ["idna", "punycode", "undefined", "rot13", "hex"])
def test_what_is_no_encoding_of_files_is_refused(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(SpecError, match=f"input.encoding: no encoding '{encoding}'"):
        opened(tmp_path, input={"encoding": encoding})


@pytest.mark.parametrize(("name", "rows"), [("part-00000", '{"x": 1}\n{"x": 2}\n'), ("part-00000.csv", "x\n1\n2\n")])
def test_folders_of_partitions_become_columns_as_those_of_parquet_do(tmp_path: Path, name: str, rows: str) -> None:
    for folder in ("day=1/site=a%20b", "day=22/site=007", "day=__HIVE_DEFAULT_PARTITION__/site=z"):
        file = tmp_path / "in" / folder / name
        file.parent.mkdir(parents=True)
        file.write_text(rows)
    found = rows_of(opened(tmp_path / "in", template="{site} on {day}"))
    places = [(1, "a b")] * 2 + [(22, "007")] * 2 + [(None, "z")] * 2
    assert [(row["day"], row["site"]) for row in found] == places
    assert {int(row["x"]) for row in found} == {1, 2}
    assert found[0]["row_id"] == f"day=1/site=a%20b/{name}#{1 if name == 'part-00000' else 2}"


def test_a_key_of_the_rows_wins_over_a_folder_of_that_name(tmp_path: Path) -> None:
    file = tmp_path / "in" / "x=9" / "a.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text('{"x": 1}\n{"x": 2}\n')
    assert [row["x"] for row in rows_of(opened(tmp_path / "in", template="{x}"))] == [1, 2]


def test_nan_and_infinity_are_numbers_as_python_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    scores = [float("nan"), 1, float("inf"), None, -float("inf")]
    path.write_text("".join(json.dumps({"score": score, "x": 1}) + "\n" for score in scores))
    rows = rows_of(opened(path, template="{x}"))
    assert _errors(rows) == [None] * 5
    assert repr([row["score"] for row in rows]) == repr([float("nan"), 1.0, float("inf"), None, -float("inf")])
