"""Parquet: columns, ids, splits, many files, and files that are broken."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_job.arrow.column_types import wide_type
from ray_job.errors import InputError, SpecError
from ray_job.inputs.pictures.decode import pictures_of
from ray_job.inputs.pictures.references import read_picture
from ray_job.inputs.source import iter_tables
from ray_job.spec import LimitsSpec

from .conftest import ids_of, opened, rows_of

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _write(path: Path, table: pa.Table, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def _numbered(num_rows: int, start: int = 0) -> pa.Table:
    return pa.table({"n": pa.array(range(start, start + num_rows), pa.int64())})


@pytest.mark.parametrize(
    "values",
    [
        pa.array([{"bytes": b"p", "path": "x"}, None], IMAGE),
        pa.array([[{"bytes": b"p", "path": None}], None], pa.list_(IMAGE)),
        pa.array([b"p", None], pa.binary()),
        pa.array([b"p", None], pa.large_binary()),
        pa.array(["p.png", None], pa.string()),
        pa.array([["p.png"], None], pa.list_(pa.string())),
    ],
    ids=lambda values: str(values.type)[:20],
)
def test_every_form_of_picture_column_is_delivered(tmp_path: Path, values: pa.Array) -> None:
    (tmp_path / "p.png").write_bytes(b"p")
    source = opened(_write(tmp_path / "a.parquet", pa.table({"image": values})))
    assert source.image_columns == ("image",)
    assert source.columns.field("image").type == wide_type(values.type)
    assert source.kept == ()
    good, missing = (pictures_of(row, source.image_columns) for row in rows_of(source))
    assert read_picture(good[0], root=source.image_root, limits=LimitsSpec()) == b"p"
    assert missing == [None]


def test_only_used_columns_are_read_and_types_stay(tmp_path: Path) -> None:
    table = pa.table(
        {
            "key": pa.array([7, 8], pa.uint16()),
            "image": pa.array([b"p", b"q"]),
            "unused": pa.array([[1], [2]], pa.list_(pa.int8())),
            "label": pa.array(["a", "b"]).dictionary_encode(),
            "score": pa.array([1.5, None], pa.float32()),
            "question": ["x?", "y?"],
        }
    )
    source = opened(_write(tmp_path / "a.parquet", table), template=None, input={"id_column": "key"})
    assert source.id_field == pa.field("row_id", pa.uint16())
    assert source.columns.names == ["image", "label", "score", "question"]
    assert [str(field.type) for field in source.kept] == ["string", "float", "string"]
    assert source.prompt.template == "{question}"
    assert rows_of(source)[1] == {
        "row_id": 8, "image": b"q", "label": "b", "score": None, "question": "y?", "_rj_read_error": None,
    }  # fmt: skip


def test_a_template_and_kept_columns_choose_what_is_delivered(tmp_path: Path) -> None:
    table = pa.table({"a": [1], "b": ["x"], "c": [True], "p": ["{}"], "img": [b""]})
    source = opened(
        _write(tmp_path / "a.parquet", table),
        template="{b} {row_id}",
        input={"keep_columns": ["c"], "image_columns": ["img"]},
        generation={"overrides_column": "p"},
    )
    assert source.columns.names == ["img", "c", "b", "p"]
    assert [field.name for field in source.kept] == ["c"]
    assert source.overrides_column == "p"


def test_every_problem_with_columns_comes_at_once(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", pa.table({"ident": [1.5], "caption": ["x"], "status": ["y"]}))
    with pytest.raises(SpecError) as caught:
        opened(
            path,
            template="{captoin}",
            input={"id_column": "ident", "image_columns": ["img"], "keep_columns": ["status", "capt"]},
            generation={"overrides_column": "over"},
        )
    text = str(caught.value)
    assert len(caught.value.problems) == 5
    for expected in ("'img'", "'capt'; did you mean 'caption'?", "'captoin'", "'over'", "type double"):
        assert expected in text


def test_row_id_may_be_the_id_column(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", pa.table({"row_id": ["x", "y"]}))
    assert ids_of(opened(path, input={"id_column": "row_id"})) == ["x", "y"]


def test_files_with_other_columns_and_wider_types_become_one(tmp_path: Path) -> None:
    _write(
        tmp_path / "in/a.parquet", pa.table({"id": pa.array([1], pa.int32()), "image": [{"path": "x"}], "t": [None]})
    )
    late = pa.table({"late": ["z"], "id": pa.array([2], pa.int64()), "t": ["u"]})
    _write(tmp_path / "in/b.parquet", late.append_column("image", pa.array([{"bytes": b"p", "path": None}], IMAGE)))
    source = opened(tmp_path / "in", input={"id_column": "id"})
    first, second = rows_of(source)
    assert source.id_field.type == pa.int64()
    assert first["image"] == {"path": "x", "bytes": None}
    assert (first["t"], first["late"], second["t"], second["late"]) == (None, None, "u", "z")


def test_types_that_do_not_go_together_matter_only_where_used(tmp_path: Path) -> None:
    _write(tmp_path / "in/a.parquet", pa.table({"x": [1], "y": [1]}))
    _write(tmp_path / "in/b.parquet", pa.table({"x": ["one"], "y": [2]}))
    with pytest.raises(SpecError, match=r"'x': it is int64 in a\.parquet and string in b\.parquet"):
        opened(tmp_path / "in")
    assert [row["y"] for row in rows_of(opened(tmp_path / "in", input={"keep_columns": ["y"]}))] == [1, 2]


def test_hive_folders_become_columns(tmp_path: Path) -> None:
    _write(tmp_path / "in/day=1/site=a%20b/x.parquet", _numbered(1))
    _write(tmp_path / "in/day=22/site=007/x.parquet", _numbered(1))
    _write(tmp_path / "in/day=__HIVE_DEFAULT_PARTITION__/site=z/x.parquet", _numbered(1))
    rows = rows_of(opened(tmp_path / "in", template="{site}"))
    assert [(row["day"], row["site"]) for row in rows] == [(1, "a b"), (22, "007"), (None, "z")]
    assert rows[0]["row_id"] == "day=1/site=a%20b/x.parquet#0"


def test_ids_do_not_depend_on_how_the_input_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "one/in/b.parquet", _numbered(2))
    _write(tmp_path / "one/in/a/c.parquet", _numbered(1))
    expected = ["a/c.parquet#0", "b.parquet#0", "b.parquet#1"]
    folder = tmp_path / "one" / "in"
    monkeypatch.chdir(tmp_path / "one")
    for path in (folder, "in", "./in/", folder.as_uri(), f"{folder}/**/*.parquet", f"{folder}/*", f"{folder}/[ab]*"):
        assert ids_of(opened(path)) == expected, path
    assert ids_of(opened(folder / "b.parquet")) == expected[1:]
    assert sorted(ids_of(opened([folder / "b.parquet", folder / "a"]))) == expected
    assert ids_of(opened([folder, folder / "b.parquet"])) == expected, "a file that two paths name is read once"
    _write(tmp_path / "two/in/b.parquet", _numbered(1))
    both = ids_of(opened([tmp_path / "one", tmp_path / "two"]))
    assert both == ["one/in/a/c.parquet#0", "one/in/b.parquet#0", "one/in/b.parquet#1", "two/in/b.parquet#0"]


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=3).filter(any),
    group=st.integers(1, 12),
    max_rows=st.integers(1, 9),
    limit=st.none() | st.integers(1, 100),
    split_rows=st.integers(1, 40),
)
def test_ids_are_unique_and_stable_under_any_layout(
    sizes: list[int], group: int, max_rows: int, limit: int | None, split_rows: int
) -> None:
    expected = [f"{file}.parquet#{row}" for file, size in enumerate(sizes) for row in range(size)][:limit]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray_job.inputs.formats.tables.parquet_splits.SPLIT_ROWS", split_rows)
        for file, size in enumerate(sizes):
            _write(Path(folder) / f"{file}.parquet", _numbered(size, 100 * file), row_group_size=group)
        source = opened(folder, input={"limit": limit})
        rows = rows_of(source, max_rows)
        assert [row["row_id"] for row in rows] == expected
        assert [row["n"] for row in rows] == [
            100 * file + row for file, size in enumerate(sizes) for row in range(size)
        ][:limit]
        shuffled = [
            row["row_id"] for split in reversed(source.splits) for t in source.read(split, 5) for row in t.to_pylist()
        ]
        assert sorted(shuffled) == sorted(expected)


def test_a_null_id_is_that_rows_error_where_it_can_be_named(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", pa.table({"id": ["x", None, "z"]}))
    rows = rows_of(opened(path, input={"id_column": "id"}))
    assert [row["row_id"] for row in rows] == ["x", "a.parquet#1", "z"]
    assert [row["_rj_read_error"] and row["_rj_read_error"]["code"] for row in rows] == [None, "row_malformed", None]


@pytest.mark.parametrize("statistics", [True, False])
def test_a_null_number_as_id_ends_the_job_with_advice(tmp_path: Path, statistics: bool) -> None:
    path = _write(tmp_path / "a.parquet", pa.table({"id": [1, 2, None]}), write_statistics=statistics)
    with pytest.raises(InputError, match=r"a\.parquet: column 'id', the input\.id_column, is null in "):
        rows_of(opened(path, input={"id_column": "id"}))


def test_text_that_is_not_utf8_is_its_rows_error(tmp_path: Path) -> None:
    bad = pa.array([b"good", b"\xff\xfe"]).view(pa.string())
    rows = rows_of(opened(_write(tmp_path / "a.parquet", pa.table({"t": bad, "id": bad})), input={"id_column": "id"}))
    assert [(row["row_id"], row["t"]) for row in rows] == [("good", "good"), ("a.parquet#1", None)]
    assert rows[1]["_rj_read_error"]["code"] == "row_malformed"


def test_broken_files_are_named(tmp_path: Path) -> None:
    whole = _write(tmp_path / "whole.parquet", pa.table({"n": list(range(5000))}), row_group_size=1000).read_bytes()
    (tmp_path / "text.parquet").write_text("no Parquet")
    (tmp_path / "cut.parquet").write_bytes(whole[:-20])
    (tmp_path / "empty.parquet").touch()
    for name in ("text", "cut", "empty"):
        with pytest.raises(InputError, match=rf"{name}\.parquet: not a Parquet file, or cut short"):
            opened(tmp_path / f"{name}.parquet")


def test_a_file_that_changes_after_planning_is_noticed(tmp_path: Path) -> None:
    source = opened(_write(tmp_path / "a.parquet", _numbered(5)))
    _write(tmp_path / "a.parquet", _numbered(4))
    with pytest.raises(InputError, match="row group 0 has 4 rows, and had 5 when the job began"):
        rows_of(source)


def test_a_source_is_small_to_send(tmp_path: Path) -> None:
    source = opened(_write(tmp_path / "a.parquet", _numbered(20_000), row_group_size=100))
    assert len(source.splits) == 5
    assert all(len(pickle.dumps(split)) < 2000 for split in source.splits)
    shipped = pickle.loads(pickle.dumps(source.without_splits()))
    assert len(pickle.dumps(shipped)) < 3000
    split = pickle.loads(pickle.dumps(source.splits[-1]))
    assert [t.num_rows for t in shipped.read(split, 300)] == [100] * (split.num_rows // 100)


def test_parquet_on_s3(s3: Callable[[str, bytes], str], tmp_path: Path) -> None:
    content = _write(tmp_path / "a.parquet", _numbered(7), row_group_size=3).read_bytes()
    s3("table/day=1/a.parquet", content)
    uri = s3("table/day=2/b.parquet", content)
    s3("table/_SUCCESS", b"")
    source = pickle.loads(pickle.dumps(opened("s3://pictures/table")))
    assert ids_of(source)[6:8] == ["day=1/a.parquet#6", "day=2/b.parquet#0"]
    assert ids_of(opened("s3://pictures/table/*/*.parquet", input={"limit": 1})) == ["day=1/a.parquet#0"]
    assert opened(uri).num_rows == 7
    assert source.skipped.num_files == 1
    assert str(source.image_root) == "s3://pictures/table"
    with pytest.raises(InputError, match="s3://pictures/none: no such file or folder"):
        opened("s3://key:topsecret@pictures/none")
    assert sum(table.num_rows for table in iter_tables(source)) == 14


def test_a_clash_names_the_file_whose_type_it_is(tmp_path: Path) -> None:
    for name, column in (
        ("a", pa.nulls(1)),
        ("b", pa.array([1], pa.int32())),
        ("c", pa.array([1], pa.int64())),
        ("d", pa.array(["x"])),
    ):
        pq.write_table(pa.table({"n": column, "t": ["x"]}), tmp_path / f"{name}.parquet")
    with pytest.raises(SpecError, match=r"column 'n': it is int32 in b\.parquet and string in d\.parquet"):
        opened(tmp_path)
    assert opened(tmp_path, input={"keep_columns": ["t"]}).num_rows == 4


def test_texts_of_all_kinds_go_together_in_several_files(tmp_path: Path) -> None:
    views = pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())])
    for name, text, image in (
        ("a", pa.string(), IMAGE),
        ("b", pa.string_view(), views),
        ("c", pa.large_string(), IMAGE),
    ):
        picture = pa.array([{"bytes": b"x", "path": name}], image)
        _write(tmp_path / f"{name}.parquet", pa.table({"q": pa.array([name], text), "image": picture}))
    rows = rows_of(opened(tmp_path, template="{q}"))
    assert [(row["q"], row["image"]["path"]) for row in rows] == [("a", "a"), ("b", "b"), ("c", "c")]


@pytest.mark.parametrize("inner", ["part-0.parquet", "p=1/part-0.parquet", "p=a/q=%20/part-0.parquet"])
@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_files_of_a_table_are_not_read_loose(tmp_path: Path, inner: str, kind: str) -> None:
    table = tmp_path / "lake" / "a table"
    sign = "_delta_log/00000000000000000000.json" if kind == "delta" else "metadata/00000-a.metadata.json"
    data = _write(table / ("" if kind == "delta" else "data") / inner, _numbered(3))
    assert opened(data).num_rows == 3
    (table / sign).parent.mkdir()
    (table / sign).write_text("{}")
    for path in (data, data.parent / "*.parquet", tmp_path / "**" / "*.parquet", tmp_path / "lake" / "a*" / "**"):
        with pytest.raises(InputError, match=f"lake/a table: this folder is a table of format {kind}"):
            opened(path)
