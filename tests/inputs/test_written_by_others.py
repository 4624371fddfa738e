"""Text tables as pandas, polars and DuckDB write them, and picture folders as `datasets` reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import opened, rows_of, write_lines

pytestmark = pytest.mark.data
pandas = pytest.importorskip("pandas")
polars = pytest.importorskip("polars")
duckdb = pytest.importorskip("duckdb")

ROWS: list[dict[str, Any]] = [
    {"id": "00123", "q": 'What is "it", in\ntwo lines?', "note": None},
    {"id": "12345678901234567890", "q": "Größe; 5\" 'wide'", "note": "NA"},
    {"id": "x,y", "q": "\u2028 is no newline", "note": "  "},
]


def _pandas() -> Any:
    return pandas.DataFrame(ROWS)


def _duckdb(options: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        table = polars.DataFrame(ROWS).to_arrow()
        duckdb.from_arrow(table).query("t", f"COPY t TO '{path}' ({options})")

    return write


WRITERS: dict[str, Callable[[Path], None]] = {
    "pandas.csv": lambda path: _pandas().to_csv(path, index=False),
    "pandas_utf16.csv": lambda path: _pandas().to_csv(path, index=False, encoding="utf-16", sep=";"),
    "pandas.tsv": lambda path: _pandas().to_csv(path, index=False, sep="\t", lineterminator="\r\n"),
    "pandas.csv.zst": lambda path: _pandas().to_csv(path, index=False, compression={"method": "gzip"}),
    "pandas.json": lambda path: _pandas().to_json(path, orient="records", indent=2),
    "pandas.jsonl": lambda path: _pandas().to_json(path, orient="records", lines=True),
    "pandas_bz2": lambda path: _pandas().to_json(path, orient="records", lines=True, compression="bz2"),
    "polars.csv": lambda path: polars.DataFrame(ROWS).write_csv(path),
    "polars.ndjson": lambda path: polars.DataFrame(ROWS).write_ndjson(path),
    "polars.json": lambda path: polars.DataFrame(ROWS).write_json(path),
    "duckdb.csv": _duckdb("FORMAT csv, HEADER"),
    "duckdb.json": _duckdb("FORMAT json, ARRAY true"),
    "duckdb_lines.json": _duckdb("FORMAT json"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_tables_come_back_as_they_were_written(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    rows = rows_of(opened(tmp_path, input={"id_column": "id"}, template="{q}"))
    assert [{"id": row["row_id"], "q": row["q"], "note": row["note"]} for row in rows] == ROWS
    assert [row["_rj_read_error"] for row in rows] == [None] * 3


@pytest.mark.parametrize(
    "lines",
    [
        [{"file_name": "a/1.png", "text": "one"}, {"file_name": "2.png", "text": "two"}],
        [{"file_names": ["a/1.png", "2.png"], "text": "both"}],
        [{"left_file_name": "a/1.png", "right_file_name": "2.png", "text": "both"}],
    ],
)
def test_metadata_makes_the_columns_that_it_makes_for_datasets(
    tmp_path: Path, png: bytes, lines: list[dict[str, Any]]
) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "in" / "a").mkdir(parents=True)
    for name in ("a/1.png", "2.png"):
        (tmp_path / "in" / name).write_bytes(png)
    write_lines(tmp_path / "in" / "metadata.jsonl", list(lines))
    theirs = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "in"), split="train", cache_dir=str(tmp_path / "cache")
    )
    ours = opened(tmp_path / "in")
    assert {*ours.image_columns, "text"} == set(theirs.column_names)
    rows = rows_of(ours)
    assert sorted(row["text"] for row in rows) == sorted(theirs["text"])
