"""Rows with equal pictures stand together, and every row is there once."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from ray_job.inputs.datasource import RowDatasource
from ray_job.inputs.grouping import together

from .conftest import opened

_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _table(column: pa.Array) -> pa.Table:
    return pa.table({"n": range(len(column)), "image": column})


@given(st.lists(st.one_of(st.none(), st.sampled_from("abcd")), max_size=20))
def test_groups_follow_their_first_row(names: list[str | None]) -> None:
    shapes = {
        "path": pa.array(names, pa.string()),
        "bytes": pa.array([None if name is None else name.encode() for name in names], pa.binary()),
        "struct": pa.array([None if n is None else {"bytes": n.encode(), "path": None} for n in names], _PICTURE),
        "list": pa.array([None if n is None else [{"bytes": None, "path": n}] for n in names], pa.list_(_PICTURE)),
    }
    for column in shapes.values():
        order = together(_table(column), ["image"]).column("n").to_pylist()
        assert sorted(order) == list(range(len(names)))
        leaders = [number for number in order if names[number] is None or number == names.index(names[number])]
        assert leaders == sorted(leaders)
        shown = [(names[number] or f"row {number}") for number in order]
        runs = [name for name, _ in itertools.groupby(shown)]
        assert len(runs) == len(set(runs))
        assert together(_table(column), []).equals(_table(column))


def test_questions_of_a_picture_scattered_over_a_file_are_read_into_one_block(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"n": n, "image": b"%d" % (n % 50)} for n in range(400)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (task,) = RowDatasource(opened(tmp_path), max_rows=64).get_read_tasks(1)
    tables = list(task())
    assert [table.num_rows for table in tables] == [64] * 6 + [16]
    whole = pa.concat_tables(tables)
    assert whole.column("_rj_position").to_pylist() == whole.column("n").to_pylist()
    pictures = whole.column("image").to_pylist()
    assert [picture for picture, _ in itertools.groupby(pictures)] == [b"%d" % n for n in range(50)]
