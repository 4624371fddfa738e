"""Arrow IPC files and streams, Feather, and Hugging Face folders: every row under its id, batches of any size."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pytest

from ray_job.errors import InputError, SpecError
from ray_job.inputs.formats.tables.row_groups import PIECE_BYTES
from ray_job.inputs.identity import input_identity
from ray_job.inputs.source import iter_tables

from .conftest import ids_of, opened, rows_of

MIB = 2**20


def written(path: Path, table: pa.Table, *, rows: int = 4, codec: str | None = None, stream: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    opening = pa.ipc.new_stream if stream else pa.ipc.new_file
    with opening(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def numbered(num_rows: int) -> pa.Table:
    return pa.table(
        {
            "unused": pa.array([[row] for row in range(num_rows)]),
            "n": pa.array(range(num_rows), pa.int16()),
            "image": pa.array([b"p%d" % row for row in range(num_rows)]),
            "label": pa.array([f"label {row % 3}" for row in range(num_rows)]).dictionary_encode(),
        }
    )


@pytest.mark.parametrize("codec", [None, "lz4", "zstd"])
@pytest.mark.parametrize("stream", [False, True], ids=["file", "stream"])
@pytest.mark.parametrize("columns", [["n", "image"], ["n", "image", "label"]], ids=["plain", "dictionaries"])
def test_every_row_comes_under_its_position(
    tmp_path: Path, codec: str | None, stream: bool, columns: list[str]
) -> None:
    table = numbered(10).select(columns)
    source = opened(written(tmp_path / "a.arrow", table, codec=codec, stream=stream))
    assert source.image_columns == ("image",)
    rows = rows_of(source)
    assert [row["row_id"] for row in rows] == [f"a.arrow#{row}" for row in range(10)]
    assert [row["n"] for row in rows] == list(range(10))
    assert [row["image"] for row in rows] == [b"p%d" % row for row in range(10)]
    if "label" in columns:
        assert [row["label"] for row in rows] == [f"label {row % 3}" for row in range(10)]
    assert ids_of(opened(tmp_path / "a.arrow", input={"limit": 5})) == [f"a.arrow#{row}" for row in range(5)]


@pytest.mark.parametrize("stream", [False, True], ids=["file", "stream"])
@pytest.mark.parametrize("with_dictionary", [False, True])
def test_large_files_are_cut_at_batches_and_any_split_is_read_alone(
    tmp_path: Path, stream: bool, with_dictionary: bool
) -> None:
    columns = ["n", "image", "label"] if with_dictionary else ["n", "image"]
    table = numbered(10_000).select(columns)
    source = opened(written(tmp_path / "a.arrow", table, rows=1000, stream=stream))
    expected = [10_000] if stream and with_dictionary else [4000, 4000, 2000]
    assert [split.num_rows for split in source.splits] == expected
    tables = list(source.read(source.splits[-1], 300))
    assert max(part.num_rows for part in tables) <= 300
    last = pa.concat_tables(tables)
    first = 10_000 - expected[-1]
    assert last.column("row_id").to_pylist() == [f"a.arrow#{row}" for row in range(first, 10_000)]
    assert last.column("n").to_pylist() == list(range(first, 10_000))
    assert input_identity(source) == input_identity(opened(tmp_path / "a.arrow"))


def test_every_type_that_only_arrow_has_is_delivered_as_its_values(tmp_path: Path) -> None:
    coded = pa.struct([("a", pa.dictionary(pa.int8(), pa.string()))])
    table = pa.table(
        {
            "id": pa.array([7, 8, 9], pa.uint64()),
            "runs": pa.RunEndEncodedArray.from_arrays([2, 3], ["a", "b"]),
            "view": pa.array(["x", None, "z"], pa.string_view()),
            "bytes_view": pa.array([b"x", None, b"z"], pa.binary_view()),
            "lists": pa.array([[1], [], None], pa.list_view(pa.int32())),
            "inner": pa.array([{"a": "u"}, None, {"a": "v"}], coded),
            "null": pa.nulls(3),
        }
    )
    names = ["runs", "view", "bytes_view", "lists", "inner", "null"]
    source = opened(
        written(tmp_path / "a.arrow", table), input={"id_column": "id", "keep_columns": names, "image_columns": []}
    )
    rows = rows_of(source)
    assert [row.pop("row_id") for row in rows] == [7, 8, 9]
    assert [{name: row[name] for name in names} for row in rows] == [
        {"runs": "a", "view": "x", "bytes_view": b"x", "lists": [1], "inner": {"a": "u"}, "null": None},
        {"runs": "a", "view": None, "bytes_view": None, "lists": [], "inner": None, "null": None},
        {"runs": "b", "view": "z", "bytes_view": b"z", "lists": None, "inner": {"a": "v"}, "null": None},
    ]


def test_feather_files_and_folders_with_wider_types_and_partitions(tmp_path: Path) -> None:
    (tmp_path / "day=1").mkdir()
    (tmp_path / "day=2").mkdir()
    feather.write_feather(pa.table({"n": pa.array([1], pa.int8())}), tmp_path / "day=1" / "a.feather")
    feather.write_feather(pa.table({"n": pa.array([300], pa.int16())}), tmp_path / "day=2" / "b.feather", "zstd")
    rows = rows_of(opened(tmp_path, template="{n} on {day}"))
    assert [(row["row_id"], row["n"], row["day"]) for row in rows] == [
        ("day=1/a.feather#0", 1, 1), ("day=2/b.feather#0", 300, 2),
    ]  # fmt: skip


def test_an_old_feather_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.feather").write_bytes(b"FEA1" + bytes(40) + b"FEA1")
    with pytest.raises(InputError, match=r"a\.feather: Feather version 1.*Write it again as version 2"):
        opened(tmp_path)


@pytest.mark.parametrize("stream", [False, True], ids=["file", "stream"])
def test_a_file_that_is_cut_anywhere_is_named_and_never_half_read(tmp_path: Path, stream: bool) -> None:
    path = written(tmp_path / "a.arrow", numbered(10).select(["n"]), stream=stream)
    content = path.read_bytes()
    for size in range(0, len(content), 16):
        path.write_bytes(content[:size])
        found = outcome(path)
        if isinstance(found, str):
            assert "a.arrow" in found or "no rows" in found
        else:
            assert stream, "a file has a footer"
            assert found in (4, 8, 10), "whole batches: a stream may end behind any of them"


def outcome(path: Path) -> int | str:
    """How many rows come, or why none do."""
    try:
        return len(ids_of(opened(path, template="x")))
    except InputError as error:
        return str(error)


def test_damaged_offsets_end_in_a_message(tmp_path: Path) -> None:
    dice = random.Random(0)
    path = written(tmp_path / "a.arrow", pa.table({"t": [f"text {row}" * row for row in range(40)]}), rows=10)
    content = path.read_bytes()
    for _ in range(60):
        broken = bytearray(content)
        for _ in range(3):
            broken[dice.randrange(len(broken))] = dice.randrange(256)
        path.write_bytes(broken)
        try:
            rows = rows_of(opened(path, template="{t}"))
        except (InputError, SpecError):
            continue
        assert len(rows) == 40


def test_text_that_is_not_utf8_is_its_rows_error(tmp_path: Path) -> None:
    texts = pa.array([b"good", b"\xff\xfe", b"fine"]).view(pa.string())
    rows = rows_of(opened(written(tmp_path / "a.arrow", pa.table({"t": texts})), template="{t}"))
    assert [row["t"] for row in rows] == ["good", None, "fine"]
    assert [row["_rj_read_error"] and row["_rj_read_error"]["code"] for row in rows] == [None, "row_malformed", None]


def test_a_batch_of_many_pictures_comes_in_small_pieces(tmp_path: Path) -> None:
    dice = random.Random(0)
    pictures = pa.array([dice.randbytes(MIB) for _ in range(60)])
    source = opened(written(tmp_path / "a.arrow", pa.table({"image": pictures}), rows=60))
    tables = list(iter_tables(source, 256))
    assert sum(table.num_rows for table in tables) == 60
    assert max(table.nbytes for table in tables) <= PIECE_BYTES
    assert max(table.get_total_buffer_size() for table in tables) < 2 * PIECE_BYTES, "a piece holds itself alone"


def test_arrow_on_s3(s3: Callable[[str, bytes], str], tmp_path: Path) -> None:
    for stream in (False, True):
        path = written(tmp_path / f"{stream}.arrow", numbered(10).select(["n", "image"]), stream=stream)
        rows = rows_of(opened(s3(f"arrow/{path.name}", path.read_bytes())))
        assert [row["n"] for row in rows] == list(range(10))


@pytest.fixture
def datasets() -> Any:
    return pytest.importorskip("datasets")


@pytest.mark.data
def test_a_saved_dataset_is_read_in_the_order_of_its_state(tmp_path: Path, datasets: Any, png: bytes) -> None:
    features = datasets.Features(
        {"photo": datasets.Image(), "caption": datasets.Value("string"), "kind": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = {
        "photo": [{"bytes": png, "path": None}] * 30,
        "caption": [f"caption {row}" for row in range(30)],
        "kind": [row % 2 for row in range(30)],
    }
    data = datasets.Dataset.from_dict(rows, features=features)
    data.select(range(29, -1, -1)).save_to_disk(tmp_path / "set", num_shards=12)
    source = opened(tmp_path / "set", template="{caption}")
    assert source.image_columns == ("photo",), "as its features say"
    found = rows_of(source)
    assert [row["caption"] for row in found] == [f"caption {row}" for row in range(29, -1, -1)]
    assert [row["kind"] for row in found] == [row % 2 for row in range(29, -1, -1)]
    assert found[0]["row_id"] == "data-00000-of-00012.arrow#0"
    assert {row["photo"]["bytes"] for row in found} == {png}
    assert "datasets" not in opened.__globals__
    assert "datasets" in sys.modules, "only this test needs it"


@pytest.mark.data
def test_a_saved_dict_of_splits_is_asked_which(tmp_path: Path, datasets: Any) -> None:
    part = datasets.Dataset.from_dict({"text": ["a", "b"]})
    both = datasets.DatasetDict({"train": part, "test": part.select([1])})
    both.save_to_disk(tmp_path / "sets")
    with pytest.raises(SpecError, match=r"input\.split: .*sets has the splits train, test; set it"):
        opened(tmp_path / "sets", template="{text}")
    with pytest.raises(SpecError, match=r"no 'tran'; .*train"):
        opened(tmp_path / "sets", template="{text}", input={"split": "tran"})
    rows = rows_of(opened(tmp_path / "sets", template="{text}", input={"split": "test"}))
    assert [(row["row_id"], row["text"]) for row in rows] == [("test/data-00000-of-00001.arrow#0", "b")]
    (tmp_path / "sets" / "test" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(InputError, match=r"data-00000-of-00001\.arrow is not there"):
        opened(tmp_path / "sets", template="{text}", input={"split": "test"})
    assert len(rows_of(opened(tmp_path / "sets" / "train", template="{text}"))) == 2
    with pytest.raises(SpecError, match=r"input\.split: .* without splits"):
        opened(tmp_path / "sets" / "train", template="{text}", input={"split": "train"})


@pytest.mark.data
def test_the_arrow_cache_of_datasets_is_read_too(tmp_path: Path, datasets: Any) -> None:
    data = datasets.Dataset.from_dict({"text": ["a", "b", "c"]})
    data.map(lambda row: {"text": row["text"] * 2}, cache_file_name=str(tmp_path / "cache.arrow"))
    rows = rows_of(opened(tmp_path / "cache.arrow", template="{text}"))
    assert [row["text"] for row in rows] == ["aa", "bb", "cc"]


LISTS = [[1, 2], [3, 4, 5], None, [], [7, 8]]


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        (pa.list_view(pa.int8()), LISTS),
        (pa.large_list_view(pa.int8()), LISTS),
        (pa.struct([("a", pa.list_view(pa.int8()))]), [{"a": each} for each in LISTS]),
        (pa.list_(pa.list_view(pa.string())), [[["a"]], None, [], [["b"], None, ["c", "d"]]]),
        (pa.list_(pa.list_view(pa.int8()), 2), [None, [[3], [4, 5]]]),
    ],
    ids=str,
)
def test_the_last_list_view_of_a_batch_is_whole(tmp_path: Path, type_: pa.DataType, values: list[Any]) -> None:
    """Arrow's own cast to lists empties it."""
    written(tmp_path / "a.arrow", pa.table({"x": pa.array(values, type_)}), rows=3)
    assert [row["x"] for row in rows_of(opened(tmp_path / "a.arrow", prompt={"template": "{x}"}))] == values
