"""CSV and TSV: texts as they stand, rows that are broken, quotes over lines, encodings, types, headers."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ray_job.errors import InputError, SpecError
from ray_job.inputs.formats.text.csv_rows import join_lines, split_fields
from ray_job.inputs.formats.text.lines import iter_all_lines
from ray_job.inputs.formats.text.records import Record
from ray_job.inputs.pictures.references import read_picture
from ray_job.spec import LimitsSpec

from .conftest import ids_of, opened, rows_of


def _errors(rows: list[dict[str, Any]]) -> list[str | None]:
    return [row["_rj_read_error"] and row["_rj_read_error"]["message"] for row in rows]


def _write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_values_are_texts_as_they_stand(tmp_path: Path) -> None:
    values = [
        "00123",
        "12345678901234567890",
        "NA",
        "null",
        "1e5",
        "TRUE",
        "2024-01-05 10:00",
        "1.10",
        " x ",
        '5" wide',
    ]
    names = [f"c{n}" for n in range(len(values))]
    source = opened(_write(tmp_path / "a.csv", ",".join(names) + "\n" + ",".join(values) + "\n"))
    row = rows_of(source)[0]
    assert [row[name] for name in names] == values
    assert row["row_id"] == "a.csv#2", "a row is called by its line, as editors count"
    assert {field.type for field in source.kept} == {pa.string()}


def test_empty_quoted_and_many_lined_fields(tmp_path: Path) -> None:
    text = 'a,b\r\n,""\r\n"x, ""y""\r\nz",\n\n   \n"it\'s",5" x\n'
    rows = rows_of(opened(_write(tmp_path / "a.csv", text)))
    assert [(row["row_id"], row["a"], row["b"]) for row in rows] == [
        ("a.csv#2", None, ""),
        ("a.csv#3", 'x, "y"\r\nz', None),
        ("a.csv#7", "it's", '5" x'),
    ]


@pytest.mark.parametrize(
    ("lines", "problems"),
    [
        (["1,2", "1,2,3", "1", "4,5"], [None, "line 3: has 3 fields, and the file 2", "line 4: has 1 fields", None]),
        (["1,2", '3,"open', "5,6", "7,8"], [None, "line 3: a quote is opened and never closed", None, None]),
        (["1,2", '"a"b,2', "5,6"], [None, "line 3: field 1: a quote within a quoted text is not doubled", None]),
        (["1,2", '3,"x"y', '"z",4'], [None, "line 3: field 2: a quote within", None]),
    ],
)
def test_a_broken_row_is_an_error_that_names_its_line(
    tmp_path: Path, lines: list[str], problems: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path / "a.csv", "\n".join(["a,b", *lines]))
    rows = rows_of(opened(path))
    assert [row["row_id"] for row in rows] == [f"a.csv#{number}" for number in range(2, len(lines) + 2)]
    for message, problem in zip(_errors(rows), problems, strict=True):
        assert message == problem or (problem and f"a.csv, {problem}" in str(message))
    monkeypatch.setattr("ray_job.inputs.formats.text.record_splits.SPLIT_ROWS", 1)
    assert rows_of(opened(path)) == rows


def test_a_row_of_too_many_lines_does_not_swallow_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_job.inputs.formats.text.record_splits.MAX_ROW_BYTES", 40)
    path = _write(tmp_path / "a.csv", 'a\n"open\n' + "x\n" * 50 + '"closed"\n')
    rows = rows_of(opened(path))
    assert len(rows) == 52
    assert [message is None for message in _errors(rows)] == [False] + [True] * 51
    monkeypatch.setattr("ray_job.inputs.formats.text.record_splits.SPLIT_ROWS", 7)
    assert rows_of(opened(path)) == rows


FIELDS = st.lists(st.text('a",;\n é'), min_size=1, max_size=4)


@settings(deadline=None)
@given(st.lists(FIELDS, max_size=5), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), st.sampled_from(",;"))
@example([["", "a"]], csv.QUOTE_MINIMAL, ",")
def test_what_the_standard_library_writes_is_read_back(rows: list[list[str]], quoting: Any, delimiter: str) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, quoting=quoting, delimiter=delimiter).writerows(rows)
    found = list(join_lines(iter_all_lines(io.BytesIO(buffer.getvalue().encode()), 1000), delimiter, 1000))
    fields = [[field or "" for field in split_fields((row.content or b"").decode(), delimiter)] for row in found]
    assert fields == [row for row in rows if row != [" " * len(row[0])] or quoting == csv.QUOTE_ALL or row == [""]]


@settings(deadline=None)
@given(st.text('a",\n', max_size=40), st.integers(1, 50))
def test_no_byte_is_in_two_rows_or_in_none(text: str, max_bytes: int) -> None:
    lines = list(iter_all_lines(io.BytesIO(text.encode()), 100))
    rows: list[Record] = list(join_lines(lines, ",", max_bytes))
    blank = {line.start for line in lines if not (line.content or b"").strip()}
    covered = [line.start for line in lines for row in rows if row.start <= line.start < row.end]
    assert len(covered) == len(set(covered))
    assert {line.start for line in lines} - set(covered) <= blank


def test_what_lies_behind_a_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n,t\n1,x\n2,y\n")
    (tmp_path / "b.csv").write_text("n,t\n3,z\nno number,z\n")
    sections: dict[str, Any] = {"id_column": "n", "column_types": {"n": "int"}}
    for limit in (1, 2, 3):
        assert ids_of(opened(tmp_path, input={**sections, "limit": limit})) == [1, 2, 3][:limit]
    with pytest.raises(InputError, match=r"b\.csv, line 3: 'n', the row's id"):
        opened(tmp_path, input={**sections, "limit": 4})


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        ("\ufeffa;b\r\né;2\r\n".encode(), None),
        ("a\tb\né\t2\n".encode("utf-16"), None),
        ("a|b\né|2\n".encode("latin-1"), "latin-1"),
        (gzip.compress("a,b\né,2\n".encode()), None),
        ("a,b\né,2".encode("cp1252"), "cp1252"),
    ],
)
def test_encodings_and_delimiters(tmp_path: Path, data: bytes, encoding: str | None) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    rows = rows_of(opened(tmp_path, input={"encoding": encoding}))
    assert [(row["row_id"], row["a"], row["b"]) for row in rows] == [("a.csv#2", "é", "2")]


def test_a_row_that_is_not_utf_8_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a\nx\ncaf\xe9\n")
    rows = rows_of(opened(tmp_path / "a.csv"))
    assert [message is None for message in _errors(rows)] == [True, False]
    assert "line 3: not UTF-8 at byte 3; if the file has another encoding, set input.encoding" in str(_errors(rows)[1])


def test_types_that_the_spec_names(tmp_path: Path) -> None:
    text = "n,f,b,d,t,s\n7,1.5,true,2024-01-05,2024-01-05 10:00,00123\nx,2,false,,,\n"
    types = {"n": "int", "f": "float32", "b": "bool", "d": "date", "t": "timestamp"}
    rows = rows_of(opened(_write(tmp_path / "a.csv", text), input={"column_types": types}))
    when = datetime.datetime(2024, 1, 5, 10)
    assert [rows[0][name] for name in "nfbdts"] == [7, 1.5, True, when.date(), when, "00123"]
    assert [rows[1][name] for name in "nfbdts"] == [None, 2.0, False, None, None, None]
    assert "line 3: 'n' is no int64: " in str(_errors(rows)[1])
    wrong_types = ({"n": "integer"}, "no type 'integer'"), ({"n": "duration[s]"}, r"no type 'duration\[s\]'")
    for wrong, message in (*wrong_types, ({"m": "int"}, r"no column 'm'")):
        with pytest.raises(SpecError, match=message):
            opened(tmp_path / "a.csv", input={"column_types": wrong})


def test_ids(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "id,x\n007,a\n,b\n8,c\n")
    rows = rows_of(opened(path, input={"id_column": "id"}))
    assert [row["row_id"] for row in rows] == ["007", "a.csv#3", "8"]
    assert "'id', the row's id, is empty" in str(_errors(rows)[1])
    with pytest.raises(InputError, match=r"a\.csv, line 3: 'id', the row's id, is empty"):
        opened(path, input={"id_column": "id", "column_types": {"id": "int"}})
    _write(path, "id,x\n007,a\n8,c\n")
    source = opened(path, input={"id_column": "id", "column_types": {"id": "int"}})
    assert (ids_of(source), source.id_field.type) == ([7, 8], pa.int64())


def test_headers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _write(tmp_path / "a.csv", ",x, y ,x\n0,1,2,3\n")
    with pytest.raises(SpecError, match=r"column 'x': there are two of that name in a\.csv"):
        opened(tmp_path / "a.csv")
    source = opened(tmp_path / "a.csv", input={"keep_columns": ["y"]}, template="{y}")
    assert [row["y"] for row in rows_of(source)] == ["2"]
    assert "a.csv: a column without a name is left out" in caplog.text
    for name, text, message in (
        ("empty.csv", "\n\n", "is empty; a CSV file begins with the names"),
        ("open.csv", '"a,b\n1,2\n', "its header cannot be read: .*line 1: a quote is opened"),
        ("zero.csv", "a\0,\0b\0\n\0", "line 1: it holds zero bytes; .* set input.encoding: utf-16-le"),
    ):
        with pytest.raises(InputError, match=message):
            opened(_write(tmp_path / name, text))


def test_the_line_that_excel_puts_first_names_the_delimiter(tmp_path: Path) -> None:
    rows = rows_of(opened(_write(tmp_path / "a.csv", "\ufeffsep=;\r\na;b,c\r\n1;2\r\n")))
    assert [(row["row_id"], row["a"], row["b,c"]) for row in rows] == [("a.csv#3", "1", "2")]


def test_an_empty_part_has_no_rows(tmp_path: Path) -> None:
    for name, text in (("part-0.csv", "a,b\n1,2\n"), ("part-1.csv", ""), ("part-2.csv", "a,b\n")):
        _write(tmp_path / name, text)
    assert ids_of(opened(tmp_path)) == ["part-0.csv#2"]


def test_files_without_a_header_are_not_taken_for_files_with_one(tmp_path: Path) -> None:
    _write(tmp_path / "part-00000", "1,cat\n2,dog\n")
    _write(tmp_path / "part-00001", "3,cow\n4,hen\n")
    with pytest.raises(InputError, match=r"no column in common .*; '3', 'cow'.* set input\.column_names"):
        opened(tmp_path)
    rows = rows_of(opened(tmp_path, input={"column_names": ["id", "animal"], "id_column": "id"}))
    assert [(row["row_id"], row["animal"]) for row in rows] == [("1", "cat"), ("2", "dog"), ("3", "cow"), ("4", "hen")]


def test_columns_of_several_files_add_up(tmp_path: Path) -> None:
    _write(tmp_path / "a.csv", "id,x\n1,a\n")
    _write(tmp_path / "b.csv", "y,id\nb,2\n")
    rows = rows_of(opened(tmp_path))
    assert [(row["id"], row["x"], row["y"]) for row in rows] == [("1", "a", None), ("2", None, "b")]


def test_csv_on_s3_with_pictures(s3: Callable[[str, bytes], str], png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_job.inputs.formats.text.record_splits.SPLIT_ROWS", 2)
    s3("csvs/p.png", png)
    uri = s3("csvs/a.csv", b"image,q\n" + b'p.png,"a,\nb"\n' * 5)
    source = pickle.loads(pickle.dumps(opened(uri, template="{q}")))
    assert [split.num_rows for split in source.splits] == [2, 2, 1]
    rows = rows_of(source)
    assert [row["row_id"] for row in rows] == [f"a.csv#{line}" for line in (2, 4, 6, 8, 10)]
    assert {row["q"] for row in rows} == {"a,\nb"}
    assert read_picture(rows[0]["image"], root=source.image_root, limits=LimitsSpec()) == png


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from(["1,2", '"a\nb",', "", '"open', "x", '"q"r,1', 'é,"""']), max_size=20),
    st.integers(1, 5),
    st.none() | st.integers(1, 9),
)
def test_ids_and_rows_do_not_depend_on_splits(lines: list[str], split_rows: int, limit: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = _write(Path(folder) / "a.csv", "\n".join(["a,b", "first,", *lines]))
        whole = rows_of(opened(path, input={"limit": limit}), 100)
        patch.setattr("ray_job.inputs.formats.text.record_splits.SPLIT_ROWS", split_rows)
        assert rows_of(opened(path, input={"limit": limit}), 2) == whole


def test_what_has_no_effect_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(SpecError) as caught:
        opened(tmp_path, input={"delimiter": ";", "column_types": {"a": "int"}, "column_names": "x"})
    assert len(caught.value.problems) == 3
    assert "input.delimiter: has no effect on jsonl; leave it out" in caught.value.problems
    for wrong in ({"delimiter": '"'}, {"delimiter": ",,"}, {"encoding": "latin1x"}, {"encoding": "base64"}):
        with pytest.raises(SpecError, match=r"one ASCII character|no encoding"):
            opened(tmp_path, input=wrong)


def test_times_are_read_as_the_spec_names_them(tmp_path: Path) -> None:
    text = "id,t\n1,09:30\n2,23:59:59.25\n3,noon\n4,\n"
    rows = rows_of(opened(_write(tmp_path / "a.csv", text), template="x", input={"column_types": {"t": "time"}}))
    assert [row["t"] for row in rows] == [datetime.time(9, 30), datetime.time(23, 59, 59, 250_000), None, None]
    assert ["line 4: 't' is no time64[us]: 'noon'" in str(message) for message in _errors(rows)] == [0, 0, 1, 0]
    ids = {"column_types": {"t": "time32[s]"}, "id_column": "t"}
    assert ids_of(opened(_write(tmp_path / "a.csv", "t\n09:30\n"), input=ids)) == [datetime.time(9, 30)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"x": "a"}\n{"x": "b"}\n', "holds JSON, whatever its name says; set input.format: json"),
        ('[{"x": "a"},\n{"x": "b"}]\n', "holds JSON, whatever its name says; set input.format: json"),
        ("<!DOCTYPE html>\n<html></html>\n", "holds a page of HTML or XML"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "holds a pointer of Git LFS"),
        ("id,x\r1,a\r2,b\r", r"its lines end with \\r alone"),
    ],
)
def test_what_is_no_table_is_not_asked_about(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        opened(_write(tmp_path / "a.csv", text))


@pytest.mark.parametrize("header", ["{a}", "[x]", "{", '"{""a"": 1"', "<a>"])
def test_a_header_may_have_any_brackets(tmp_path: Path, header: str) -> None:
    assert opened(_write(tmp_path / "a.csv", f"{header},b\n1,2\n")).num_rows == 1
