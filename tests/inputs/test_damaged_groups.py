"""Row groups and record batches that are damaged: their rows are errors under their own ids, all others as ever."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_job.errors import InputError, SpecError
from ray_job.inputs.datasource import MAX_TABLE_ROWS
from ray_job.inputs.formats.tables import damaged
from ray_job.inputs.formats.tables.lance import _is_damage
from ray_job.inputs.source import Source

from .conftest import opened, rows_of

NUM_ROWS, GROUP_ROWS = 60, 20
PICTURES = [random.Random(row).randbytes(300) for row in range(NUM_ROWS)]
TABLE = pa.table(
    {
        "id": [f"r{row}" for row in range(NUM_ROWS)],
        "n": pa.array(range(NUM_ROWS), pa.int64()),
        "image": PICTURES,
        "tags": [[str(row)] * (row % 3) for row in range(NUM_ROWS)],
    }
)
CHUNKS = dict(enumerate(TABLE.schema.names))
LAYOUTS: tuple[dict[str, Any], ...] = (
    {"compression": "none", "write_page_checksum": True},
    {"compression": "snappy", "data_page_version": "2.0"},
    {"compression": "zstd", "use_dictionary": False},
    {"compression": "gzip", "write_page_checksum": True, "data_page_size": 1},
)


def content(**options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(TABLE, stream, row_group_size=GROUP_ROWS, **options)
    return stream.getvalue()


def region(data: bytes, group: int, column: str) -> range:
    """Where the pages of a column lie."""
    footer = pq.read_metadata(io.BytesIO(data))
    (place,) = [index for index in range(footer.num_columns) if footer.schema.column(index).path.startswith(column)]
    chunk = footer.row_group(group).column(place)
    start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
    return range(start, start + chunk.total_compressed_size)


def with_bytes(data: bytes, places: Sequence[int], value: bytes = b"\xff") -> bytes:
    changed = bytearray(data)
    for place in places:
        changed[place] = value[0]
    return bytes(changed)


def source_of(path: Path, data: bytes, **options: Any) -> Source:
    path.write_bytes(data)
    return opened(path, template=None, prompt={"template": "{n} {tags}"}, input={"keep_columns": [], **options})


def failed(rows: Sequence[dict[str, Any]]) -> dict[int, str]:
    """The messages by the place of their row."""
    errors = {place: row["_rj_read_error"] for place, row in enumerate(rows) if row["_rj_read_error"]}
    assert all(error["code"] == "row_malformed" and not error["retryable"] for error in errors.values())
    return {place: error["message"] for place, error in errors.items()}


@pytest.mark.parametrize("column", ["image", "n", "tags"])
def test_a_damaged_group_is_errors_under_their_ids_and_its_neighbours_are_read(tmp_path: Path, column: str) -> None:
    data = content(compression="zstd", write_page_checksum=True)
    data = with_bytes(data, region(data, 1, column)[20:30])
    rows = rows_of(source_of(tmp_path / "a.parquet", data, id_column="id"))
    assert [row["row_id"] for row in rows] == TABLE.column("id").to_pylist()
    messages = failed(rows)
    assert list(messages) == list(range(20, 40))
    (message,) = set(messages.values())
    assert message.startswith("a.parquet, row group 1, rows 20 to 39 (counted from 0): damaged: ")
    assert message.endswith("None of them is read; write the file again or fetch it anew")
    for row in (*rows[:20], *rows[40:]):
        assert (row["n"], row["image"]) == (int(row["row_id"][1:]), PICTURES[row["n"]])
    assert all(row["image"] is row["n"] is row["tags"] is None for row in rows[20:40])


def test_a_damaged_column_that_is_not_needed_does_no_harm(tmp_path: Path) -> None:
    data = content(write_page_checksum=True)
    data = with_bytes(data, region(data, 1, "id")[20:30])
    assert failed(rows_of(source_of(tmp_path / "a.parquet", data))) == {}


def test_where_the_ids_are_damaged_rows_are_called_by_their_position(tmp_path: Path) -> None:
    data = content(write_page_checksum=True)
    data = with_bytes(data, region(data, 1, "id")[20:30])
    rows = rows_of(source_of(tmp_path / "a.parquet", data, id_column="id"))
    assert list(failed(rows)) == list(range(20, 40))
    ids = [f"a.parquet#{row}" if 20 <= row < 40 else f"r{row}" for row in range(NUM_ROWS)]
    assert [row["row_id"] for row in rows] == ids


def test_damaged_ids_that_are_numbers_cannot_be_made_up(tmp_path: Path) -> None:
    data = content(write_page_checksum=True)
    image = with_bytes(data, region(data, 1, "image")[20:30])
    assert [row["row_id"] for row in rows_of(source_of(tmp_path / "a.parquet", image, id_column="n"))] == list(
        range(60)
    )
    number = with_bytes(data, region(data, 1, "n")[20:30])
    with pytest.raises(InputError, match=r"rows 20 to 39 .* column 'n', the input\.id_column, .* type int64 cannot be"):
        rows_of(source_of(tmp_path / "a.parquet", number, id_column="n"))


def test_a_group_without_all_its_rows_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow takes some damaged pages for the end of a column."""
    read = damaged._counted

    def short(group: damaged.Group, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return read(damaged.Group(group.split, group.name, group.first_row, group.num_rows + 1, group.read), names)

    monkeypatch.setattr(damaged, "_counted", short)
    rows = rows_of(source_of(tmp_path / "a.parquet", content()))
    assert len(failed(rows)) == NUM_ROWS
    assert "it does not have the 21 rows that it should" in failed(rows)[0]


@pytest.mark.parametrize("held_bytes", [1, 2_000, 10**9])
@pytest.mark.parametrize("max_rows", [1, 7, MAX_TABLE_ROWS])
def test_which_rows_are_lost_does_not_depend_on_how_many_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_bytes: int, max_rows: int
) -> None:
    monkeypatch.setattr(damaged, "HELD_BYTES", held_bytes)
    monkeypatch.setattr("ray_job.inputs.formats.tables.parquet.PIECE_ROWS", 5)
    data = content(use_dictionary=False, data_page_size=1, write_batch_size=4, write_page_checksum=True)
    place = data.index(PICTURES[33])
    source = source_of(tmp_path / "a.parquet", with_bytes(data, [place]), id_column="id")
    first = {1: 30, 2_000: 30, 10**9: 20}[held_bytes]
    rows = rows_of(source, max_rows)
    assert list(failed(rows)) == list(range(first, 40))
    assert f"rows {first} to 39" in failed(rows)[39]
    assert [row["row_id"] for row in rows] == TABLE.column("id").to_pylist()


def test_a_limit_cuts_a_damaged_group(tmp_path: Path) -> None:
    data = content(write_page_checksum=True)
    data = with_bytes(data, region(data, 1, "image")[20:30])
    rows = rows_of(source_of(tmp_path / "a.parquet", data, limit=25, id_column="id"))
    assert [row["row_id"] for row in rows] == [f"r{row}" for row in range(25)]
    assert list(failed(rows)) == list(range(20, 25))


@pytest.mark.parametrize("layout", range(len(LAYOUTS)))
def test_any_damage_of_any_page_loses_no_row(tmp_path: Path, layout: int) -> None:
    """What no checksum guards may be read as other values, but every row is there, and other groups are as ever."""
    whole = content(**LAYOUTS[layout])
    expected = rows_of(source_of(tmp_path / "whole.parquet", whole, id_column="id"))
    regions = {(group, column): region(whole, group, column) for group in range(3) for column in CHUNKS.values()}
    found = set()

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        chunk=st.sampled_from(sorted(regions)),
        places=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8),
        value=st.binary(min_size=1, max_size=1),
        id_column=st.sampled_from(["id", None]),
    )
    def check(chunk: tuple[int, str], places: list[float], value: bytes, id_column: str | None) -> None:
        pages = regions[chunk]
        data = with_bytes(whole, [pages[int(place * len(pages))] for place in places], value)
        source = source_of(tmp_path / "a.parquet", data, **({} if id_column is None else {"id_column": id_column}))
        rows = rows_of(source, 7)
        assert rows == rows_of(source, MAX_TABLE_ROWS)
        assert len(rows) == NUM_ROWS
        here = range(chunk[0] * GROUP_ROWS, (chunk[0] + 1) * GROUP_ROWS)
        lost = {place for place, message in failed(rows).items() if "damaged: " in message}
        assert lost in (set(), set(here))
        assert set(failed(rows)) <= set(here), "a text that is not UTF-8 is its own row's error"
        found.update(lost)
        if id_column == "id":
            assert [row for place, row in enumerate(rows) if place not in here] == [
                row for place, row in enumerate(expected) if place not in here
            ]
        else:
            assert [row["row_id"] for row in rows] == [f"a.parquet#{row}" for row in range(NUM_ROWS)]
        if LAYOUTS[layout].get("write_page_checksum") and not failed(rows) and data != whole and id_column == "id":
            damaged_values = [row for row, good in zip(rows, expected, strict=True) if row != good]
            assert damaged_values == [], "what a checksum guards is right or an error"

    check()
    assert found, "some of it was noticed"


class Failing(io.BytesIO):
    """A file of a bucket that cannot be reached any more beyond its footer."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() < 10_000:
            raise OSError("When reading: AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28")
        return super().read(size)


def test_what_a_storage_fails_at_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    pq.write_table(pa.concat_tables([TABLE] * 10), stream, row_group_size=GROUP_ROWS)
    data = stream.getvalue()
    source = source_of(tmp_path / "a.parquet", data)
    monkeypatch.setattr("ray_job.inputs.formats.tables.parquet.open_input", lambda _: Failing(data))
    with pytest.raises(InputError, match=r"a\.parquet: row group 0 cannot be read: .*NETWORK.*\. Run the job again"):
        rows_of(source)


def arrow_content(stream: bool, compression: str | None, dictionary: bool) -> bytes:
    table = TABLE.set_column(0, "id", TABLE.column("id").dictionary_encode()) if dictionary else TABLE
    sink = io.BytesIO()
    opening = pa.ipc.new_stream if stream else pa.ipc.new_file
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with opening(sink, table.schema, options=options) as writer:
        for batch in table.to_batches(max_chunksize=GROUP_ROWS):
            writer.write_batch(batch)
    return sink.getvalue()


@pytest.mark.parametrize("stream", [False, True], ids=["file", "stream"])
def test_a_damaged_record_batch_is_errors_under_their_ids(tmp_path: Path, stream: bool) -> None:
    data = arrow_content(stream, None, dictionary=False)
    place = data.index(PICTURES[20]) - 64  # the offsets of the second batch's pictures
    rows = rows_of(source_of(tmp_path / "a.arrow", with_bytes(data, range(place - 20, place)), id_column="id"))
    assert [row["row_id"] for row in rows] == TABLE.column("id").to_pylist()
    assert list(failed(rows)) == list(range(20, 40))
    assert failed(rows)[20].startswith("a.arrow, record batch 1, rows 20 to 39 (counted from 0): damaged: ")
    assert [row["image"] for row in rows] == [*PICTURES[:20], *[None] * 20, *PICTURES[40:]]


@pytest.mark.parametrize("stream", [False, True], ids=["file", "stream"])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_any_damage_of_an_arrow_body_loses_no_row(
    tmp_path: Path, stream: bool, compression: str | None, dictionary: bool
) -> None:
    whole = arrow_content(stream, compression, dictionary)
    dice = random.Random(int(stream) + 2 * int(dictionary))
    num_read = num_failed = 0
    for _ in range(80):
        data = with_bytes(whole, [dice.randrange(len(whole)) for _ in range(3)], dice.randbytes(1))
        try:
            source = source_of(tmp_path / "a.arrow", data, id_column="id")
        except (InputError, SpecError):  # a header, which says how many rows there are and of which columns
            continue
        rows = rows_of(source, 7)
        num_read += 1
        num_failed += bool(failed(rows))
        assert len(rows) == NUM_ROWS
        assert rows == rows_of(source, MAX_TABLE_ROWS)
    assert num_read > 20
    assert num_failed or compression is None


@pytest.mark.data
@pytest.mark.parametrize("id_column", ["id", None])
def test_any_damage_of_a_lance_file_loses_no_row(tmp_path: Path, id_column: str | None) -> None:
    lance = pytest.importorskip("lance")
    lance.write_dataset(TABLE, str(tmp_path / "set.lance")).delete("n = 5")
    (path,) = (tmp_path / "set.lance" / "data").iterdir()
    whole, dice, num_lost = path.read_bytes(), random.Random(0), 0
    options = {"prompt": {"template": "{id}"}, "input": {"id_column": id_column, "keep_columns": []}}
    source = opened(tmp_path / "set.lance", **options)
    ids = [f"r{row}" if id_column else f"0#{row}" for row in range(NUM_ROWS) if row != 5]
    assert [row["row_id"] for row in rows_of(source)] == ids
    for _ in range(40):
        path.write_bytes(with_bytes(whole, [dice.randrange(len(whole) - 64) for _ in range(8)], dice.randbytes(1)))
        rows = rows_of(source, 7)
        assert rows == rows_of(source, MAX_TABLE_ROWS)
        lost = [place for place, message in failed(rows).items() if "0, fragment 0, rows 0 to 58" in message]
        assert lost in ([], list(range(NUM_ROWS - 1)))
        assert id_column or [row["row_id"] for row in rows] == ids
        num_lost += bool(lost)
    assert num_lost > 3


@pytest.mark.parametrize(
    ("message", "is_file_damaged"),
    [
        ("External error: Encountered corrupt file binary mini-block: value offset at position 9 decreases", True),
        ("External error: LanceError(IO): Generic LocalFileSystem error: failed to fill whole buffer", True),
        ("External error: LanceError(IO): Generic S3 error: error sending request: operation timed out", False),
        ("External error: LanceError(IO): Generic LocalFileSystem error: Input/output error (os error 5)", False),
        ("External error: Not found: set.lance/data/x.lance", False),
    ],
)
def test_damage_of_lance_is_told_from_a_storage_that_fails(message: str, is_file_damaged: bool) -> None:
    assert _is_damage(pa.ArrowInvalid(message)) == is_file_damaged
