"""What a reading task holds at once, however many bytes a row group, a line or a picture has.

Each measurement runs in a process of its own, whose allocator keeps nothing from tests before.
"""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_job.inputs.formats.tables.row_groups import PIECE_BYTES, iter_pieces, rows_at_once
from ray_job.inputs.windows import WINDOW_BYTES, iter_windows

ROOT = Path(__file__).parents[2]
MIB = 2**20
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
# Two windows (one that is used, one that is gathered), one more where rows are regrouped, a few pieces, and as much
# again for what the allocator keeps.
BOUND_MIB = 6 * WINDOW_BYTES // MIB
READ = """
import json, sys
from ray_job.inputs.datasource import RowDatasource
from ray_job.inputs.opening import open_source
from ray_job.spec import JobSpec
from tests.memory import peak_mib

source = open_source(JobSpec.from_dict(json.loads(sys.argv[1])))
tasks = RowDatasource(source).get_read_tasks(1)
before, rows, most = peak_mib(), 0, 0
for task in tasks:
    for table in task():
        rows, most = rows + table.num_rows, max(most, table.nbytes)
print(json.dumps({"rows": rows, "peak_mib": peak_mib() - before, "largest_mib": most / 2**20}))
"""


def slow(value: str) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


def measured(path: Path) -> dict[str, Any]:
    spec = {"input": {"path": str(path)}, "prompt": {"template": "x"}, "output": {"path": "out"}}
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(spec)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    print(f"{path.name}, {path.stat().st_size // 10**6} MB: {done.stdout}")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def written(path: Path, pictures: pa.Array | pa.ChunkedArray, **options: Any) -> Path:
    """One row group."""
    table = pa.table({"n": pa.array(range(len(pictures)), pa.int64()), "image": pictures})
    pq.write_table(table, path, row_group_size=len(table), **options)
    assert pq.ParquetFile(path).metadata.num_row_groups == 1
    return path


@pytest.mark.parametrize("kind", [slow("bytes"), "struct", slow("list")])
def test_a_large_row_group_is_read_in_small_pieces(tmp_path: Path, kind: str) -> None:
    """Pages are small here: `write_batch_size` is what bounds them."""
    dice = random.Random(0)
    pictures: pa.Array = pa.array([dice.randbytes(MIB // 2) for _ in range(400)], pa.binary())
    if kind != "bytes":
        pictures = pa.StructArray.from_arrays([pictures, pa.nulls(400, pa.string())], fields=list(STRUCT))
    if kind == "list":
        pictures = pa.ListArray.from_arrays(pa.array(range(401), pa.int32()), pictures)
    path = written(tmp_path / "rows.parquet", pictures, compression="none", use_dictionary=False, write_batch_size=2)
    assert path.stat().st_size > 200 * 10**6
    found = measured(path)
    assert found["rows"] == 400
    assert found["peak_mib"] < BOUND_MIB
    assert found["largest_mib"] <= WINDOW_BYTES / MIB


@pytest.mark.slow
def test_a_page_costs_its_size_twice_and_no_more(tmp_path: Path) -> None:
    """As Arrow writes by default: all 200 values in one page, compressed."""
    dice = random.Random(0)
    path = written(tmp_path / "rows.parquet", pa.array([dice.randbytes(MIB // 2) for _ in range(200)], pa.binary()))
    assert measured(path)["peak_mib"] < 2 * 100 + BOUND_MIB


@pytest.mark.parametrize("kind", [slow("bytes"), "struct"])
def test_a_small_file_that_decodes_to_much_is_read_in_small_pieces(tmp_path: Path, kind: str) -> None:
    picture = random.Random(0).randbytes(MIB)
    pictures = pa.array([picture], pa.binary()).take(pa.array([0] * 500))
    if kind == "struct":
        pictures = pa.StructArray.from_arrays([pictures, pa.nulls(500, pa.string())], fields=list(STRUCT))
    path = written(tmp_path / "rows.parquet", pictures)
    assert path.stat().st_size < 2 * MIB
    found = measured(path)
    assert found["rows"] == 500
    assert found["peak_mib"] < BOUND_MIB


@pytest.mark.slow
def test_rows_of_very_different_size_are_read_in_small_pieces(tmp_path: Path) -> None:
    dice = random.Random(0)
    pictures = [b"small"] * 3000 + [dice.randbytes(8 * MIB) for _ in range(40)] + [None] * 3000
    path = written(tmp_path / "rows.parquet", pa.array(pictures, pa.binary()), write_batch_size=1)
    found = measured(path)
    assert found["rows"] == 6040
    assert found["peak_mib"] < BOUND_MIB


@pytest.mark.parametrize("suffix", ["jsonl", slow("jsonl.gz")])
def test_long_lines_are_read_in_small_pieces(tmp_path: Path, suffix: str) -> None:
    import gzip

    opening = gzip.open if suffix.endswith("gz") else open
    with opening(tmp_path / f"rows.{suffix}", "wt") as file:
        for number in range(150):
            size = 4 * MIB if number % 2 else 10
            file.write(json.dumps({"n": number, "image": f"data:image/png;base64,{'A' * size}"}) + "\n")
    found = measured(tmp_path / f"rows.{suffix}")
    assert found["rows"] == 150
    assert found["peak_mib"] < BOUND_MIB


@pytest.mark.parametrize("suffix", ["tar", slow("tar.gz")])
def test_a_large_shard_is_read_in_small_pieces(tmp_path: Path, suffix: str) -> None:
    dice = random.Random(0)
    with tarfile.open(tmp_path / f"rows.{suffix}", "w:gz" if suffix == "tar.gz" else "w") as tar:
        for number in range(400):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = MIB // 2
            tar.addfile(member, io.BytesIO(dice.randbytes(MIB // 2)))
    found = measured(tmp_path / f"rows.{suffix}")
    assert found["rows"] == 400
    assert found["peak_mib"] < BOUND_MIB


@pytest.mark.parametrize("kind", ["stream", slow("file"), slow("lz4")])
def test_an_arrow_file_costs_its_largest_batch_and_no_more(tmp_path: Path, kind: str) -> None:
    dice = random.Random(0)
    schema = pa.schema([("image", pa.binary())])
    options = pa.ipc.IpcWriteOptions(compression="lz4" if kind == "lz4" else None)
    opening = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with opening(str(tmp_path / "rows.arrow"), schema, options=options) as writer:
        for _ in range(10):
            pictures = pa.array([dice.randbytes(MIB // 2) for _ in range(40)], pa.binary())
            writer.write_batch(pa.record_batch([pictures], schema=schema))
    found = measured(tmp_path / "rows.arrow")
    assert found["rows"] == 400
    assert found["peak_mib"] < BOUND_MIB + 2 * 20


@pytest.mark.data
def test_a_large_lance_fragment_is_read_in_small_pieces(tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")
    dice = random.Random(0)
    pictures = pa.array([dice.randbytes(MIB // 2) for _ in range(400)], pa.binary())
    lance.write_dataset(pa.table({"image": pictures}), str(tmp_path / "rows.lance"))
    found = measured(tmp_path / "rows.lance")
    assert found["rows"] == 400
    assert found["peak_mib"] < BOUND_MIB + 40, "its own reader's threads beside"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["bytes", "struct", "list"])
def test_a_row_group_with_more_than_2_gib_of_pictures_is_read(tmp_path: Path, kind: str) -> None:
    """Small on disk: the same few pictures again and again, the first of them last too, so that rows are regrouped."""
    dice = random.Random(0)
    distinct = pa.array([dice.randbytes(9_500_000) for _ in range(3)], pa.large_binary())
    pictures = distinct.take(pa.array([row % 3 for row in range(240)]))
    field = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
    if kind != "bytes":
        pictures = pa.StructArray.from_arrays([pictures, pa.nulls(240, pa.string())], fields=list(field))
    if kind == "list":
        pictures = pa.ListArray.from_arrays(pa.array(range(0, 241, 240), pa.int32()), pictures)  # all in one row
    path = written(tmp_path / "rows.parquet", pictures, store_schema=False)
    del pictures
    found = measured(path)
    assert found["rows"] == (1 if kind == "list" else 240)
    if kind != "list":
        assert found["peak_mib"] < BOUND_MIB + 2 * 60, "its page holds three pictures, as stored and as read"


def test_how_many_rows_are_decoded_together(tmp_path: Path) -> None:
    """Few where they may be large, and one where they are: the page's size does not bound what they become."""
    dice = random.Random(0)
    noise = dice.randbytes(32 * MIB)
    texts = [noise[row * 100 : row * 100 + 100] for row in range(100_000)]
    cases: dict[str, tuple[pa.Array, dict[str, Any], int]] = {
        "numbers": (pa.array(range(2_000_000), pa.int64()), {"use_dictionary": False}, 256),
        "few": (pa.array([noise[:100_000]] * 50, pa.binary()), {"use_dictionary": False}, 256),
        "pictures": (pa.array([noise[:100_000]] * 100, pa.binary()), {"use_dictionary": False}, 1),
        "texts": (pa.array(texts, pa.binary()), {"use_dictionary": False}, 4),
        "repeated": (pa.array([noise[:100]] * 5000, pa.binary()), {}, 256),
        "repeated pictures": (pa.array([noise[: MIB // 8]] * 300, pa.binary()), {}, 4),
        "lists of repeated pictures": (
            pa.array([[noise[: MIB // 8]] * 16] * 20, pa.list_(pa.binary())),
            {},
            3,
        ),
        "repeated large pictures": (pa.array([noise[: 3 * MIB]] * 20, pa.binary()), {}, 2),
        "lists of numbers": (pa.array([list(range(2000))] * 4000, pa.list_(pa.int16())), {"use_dictionary": False}, 4),
    }
    for name, (values, options, expected) in cases.items():
        path = written(tmp_path / "rows.parquet", values, **options)
        group = pq.ParquetFile(path).metadata.row_group(0)
        assert rows_at_once(group, ["n", "image"], 256) == expected, name
        assert rows_at_once(group, ["n", "image"], 1) == 1, name
        assert rows_at_once(group, [], 256) == 256, name


def test_pieces_hold_every_row_once_in_order(tmp_path: Path) -> None:
    dice = random.Random(1)
    values = [dice.randbytes(dice.choice((0, 10, 10, 3 * MIB))) for _ in range(60)]
    path = written(tmp_path / "rows.parquet", pa.array(values, pa.binary()), write_batch_size=3)
    for max_rows in (1, 3, 7, 256):
        pieces = list(iter_pieces(pq.ParquetFile(path), 0, ["n", "image"], max_rows))
        assert pa.Table.from_batches(pieces).column("n").to_pylist() == list(range(60))
        assert pa.Table.from_batches(pieces).column("image").to_pylist() == values
        assert all(piece.num_rows <= max_rows for piece in pieces)
        assert all(piece.nbytes < PIECE_BYTES + 4 * 3 * MIB for piece in pieces)
    assert len(pieces) > 4, "their bytes bound them, not their rows alone"


def test_pieces_of_small_rows_are_full(tmp_path: Path) -> None:
    dice = random.Random(0)
    texts = [dice.randbytes(100) for _ in range(100_000)]
    path = written(tmp_path / "rows.parquet", pa.array(texts, pa.binary()), use_dictionary=False)
    pieces = [piece.num_rows for piece in iter_pieces(pq.ParquetFile(path), 0, ["n", "image"], 256)]
    assert pieces == [256] * 390 + [160]


def test_windows_hold_every_table_once_in_order() -> None:
    tables = [pa.table({"n": pa.array([number] * (number % 5), pa.int64())}) for number in range(40)]
    windows = list(iter_windows(tables, max_bytes=80, max_rows=8))
    assert pa.concat_tables(windows).equals(pa.concat_tables(tables))
    assert max(window.num_rows for window in windows) == 8
    assert [window.num_rows for window in iter_windows(tables[4:5] * 3, max_bytes=1)] == [4, 4, 4]
    assert [window.num_rows for window in iter_windows(tables[4:5] * 3, max_bytes=64)] == [8, 4]
    assert list(iter_windows([])) == []


OPEN_AND_READ = """
import json, sys
from ray_job.inputs.opening import open_source
from ray_job.inputs.source import iter_tables
from ray_job.spec import JobSpec
from tests.memory import peak_mib

before = peak_mib()
source = open_source(JobSpec.from_dict(json.loads(sys.argv[1])))
rows = sum(table.num_rows for table in iter_tables(source))
print(json.dumps({"rows": rows, "splits": len(source.splits), "peak_mib": peak_mib() - before}))
"""


@pytest.mark.parametrize("name", ["array.json", slow("lines.jsonl"), slow("table.csv")])
def test_a_text_file_is_never_held_whole_neither_to_open_nor_to_read_it(tmp_path: Path, name: str) -> None:
    texts = ["x" * 99_990 + f"{number:010}" for number in range(2000)]
    with (tmp_path / name).open("w") as file:
        if name == "array.json":
            file.write("[" + ",".join(json.dumps({"prompt": text}) for text in texts) + "]")
        else:
            file.write("prompt\n" if name == "table.csv" else "")
            file.writelines(
                f"{text}\n" if name == "table.csv" else json.dumps({"prompt": text}) + "\n" for text in texts
            )
    spec = {"input": {"path": str(tmp_path / name)}, "output": {"path": "out"}}
    command = [sys.executable, "-c", OPEN_AND_READ, json.dumps(spec)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    print(f"{name}, 200 MB: {done.stdout}")
    assert (found["rows"], found["splits"]) == (2000, 6)
    assert found["peak_mib"] < 150
