"""Every type that Parquet holds, read, prepared, generated, written and read back: as a kept column and as an id."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_job.arrow.column_types import plain_type, reason_not_stored, stored_field, taken
from ray_job.arrow.values import python_values
from ray_job.errors import SpecError
from ray_job.inputs.opening import open_source
from ray_job.inputs.source import iter_tables
from ray_job.output.compaction import read_part
from ray_job.output.ledger import Ledger
from ray_job.output.manifest import Manifest
from ray_job.output.matching import hash_ids
from ray_job.output.verify import verify
from ray_job.rows import ROW_ID
from ray_job.spec import JobSpec
from ray_job.storage.places import locate
from ray_job.views.gallery.preview import preview
from ray_job.views.gallery.show import show
from ray_job.views.html.write import write_report

from ..columns import ID_TYPES, OfAUser, columns, far
from ..jobs_here import run_here

COLUMNS = columns()


def job(tmp_path: Path, table: pa.Table, *, mode: str = "error", template: str = "?", **inputs: Any) -> JobSpec:
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=1)
    return JobSpec.from_dict(
        {
            "input": {"path": str(tmp_path / "rows.parquet"), "image_columns": [], **inputs},
            "prompt": {"template": template},
            "model": {"path": "builtin:noop"},
            "output": {"path": str(tmp_path / "out"), "mode": mode},
        }
    )


def rows_of(out: Path) -> pa.Table:
    """An output's rows in the order of the input."""
    parts = Ledger.scan(locate(str(out))).parts
    order = np.argsort(np.concatenate([part.account.positions for part in parts]))
    return taken(pa.concat_tables([read_part(part) for part in parts]), pa.array(order))


@pytest.mark.parametrize("name", COLUMNS)
def test_a_kept_column_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    array = COLUMNS[name]
    spec = job(tmp_path, pa.table({"id": [0, 1, 2], "x": array}), id_column="id", keep_columns=["x"])
    report = run_here(spec)
    assert (report.totals.answered, report.totals.failed) == (3, 0)
    found = rows_of(tmp_path / "out")
    assert python_values(found.column("x")) == python_values(pq.read_table(tmp_path / "rows.parquet").column("x"))
    expected = stored_field(pa.field("x", plain_type(array.type))).type
    assert found.schema.field("x").type == expected
    manifest = Manifest.read(locate(str(tmp_path / "out")))
    assert manifest is not None
    assert manifest.fields["output.columns.x"] == str(found.schema.field("x").type)
    assert verify(locate(str(tmp_path / "out"))).problems == ()


@pytest.mark.parametrize("name", ID_TYPES)
def test_an_id_keeps_its_type_and_finds_its_row_again(tmp_path: Path, name: str) -> None:
    ids = pa.concat_arrays([COLUMNS[name].slice(0, 1)] * 2)
    spec = job(tmp_path, pa.table({"x": ids}), id_column="x", keep_columns=[])
    report = run_here(spec)
    assert (report.totals.answered, report.duplicates.ids, report.duplicates.rows) == (2, 1, 1)
    out = rows_of(tmp_path / "out")
    assert python_values(out.column(ROW_ID)) == python_values(pq.read_table(tmp_path / "rows.parquet").column("x"))
    assert out.schema.field(ROW_ID).type == stored_field(pa.field("x", plain_type(ids.type))).type
    assert verify(locate(str(tmp_path / "out"))).problems == ()
    (table, *_) = iter_tables(open_source(spec), 2)
    assert set(hash_ids(table.column(ROW_ID))) == set(hash_ids(out.column(ROW_ID)))


@pytest.mark.parametrize("name", far())
@pytest.mark.parametrize("use", ["id", "kept"])
def test_values_beyond_python_are_written_and_shown(
    tmp_path: Path, name: str, use: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values = far()[name]
    twice = pa.concat_arrays([values, values])
    table = pa.table({"id": twice if use == "id" else pa.array(range(4)), "x": twice})
    spec = job(tmp_path, table, id_column="id", template="about {x}?" if use == "kept" else "?")
    report = run_here(spec)
    assert report.totals.answered == 4
    assert report.duplicates.ids == (2 if use == "id" else 0)
    assert verify(locate(str(tmp_path / "out"))).problems == ()
    found = rows_of(tmp_path / "out")
    expected = pq.read_table(tmp_path / "rows.parquet")
    for back, given in ((ROW_ID, "id"), ("x", "x")):
        assert found.column(back).equals(expected.column(given)), "every bit of it"
    write_report(str(tmp_path / "out"))
    (first, *_) = python_values(found.column(ROW_ID))
    show(str(tmp_path / "out"), [first])
    shown = capsys.readouterr().out
    assert str(first) in shown
    assert "changed since" not in shown, "the row's input is found by its id"


def test_a_preview_shows_values_beyond_python(tmp_path: Path) -> None:
    table = pa.table(far())
    shown = preview(job(tmp_path, table, id_column="timestamp_ms"), 2)
    assert len(shown.cards) == 2
    assert shown.summary.startswith("2 answered, 0 failed")


def test_ids_that_differ_by_less_than_python_can_tell_are_different(tmp_path: Path) -> None:
    report = run_here(job(tmp_path, pa.table({"id": pa.array([1, 2], pa.time64("ns"))}), id_column="id"))
    assert report.duplicates.ids == 0


def test_what_parquet_cannot_hold_is_named_and_by_default_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refused = "too odd"
    monkeypatch.setattr(
        "ray_job.inputs.columns.reason_not_stored", lambda type_: refused if type_ == pa.int16() else None
    )
    table = pa.table({"id": ["a"], "odd": pa.array([1], pa.int16()), "good": [1]})
    with caplog.at_level(logging.WARNING):
        assert [field.name for field in open_source(job(tmp_path, table, id_column="id")).kept] == ["good"]
    assert caplog.text.count("'odd': too odd") == 1
    with pytest.raises(SpecError, match=r"column 'odd' .* is int16.*\(too odd\).*input\.keep_columns"):
        open_source(job(tmp_path, table, keep_columns=["odd"]))


@pytest.mark.parametrize(
    "type_", [pa.month_day_nano_interval(), pa.struct([]), pa.dense_union([pa.field("a", pa.int8())])], ids=str
)
def test_types_that_parquet_cannot_hold_are_known_before_a_row_is_written(type_: pa.DataType) -> None:
    assert reason_not_stored(type_)
    assert reason_not_stored(pa.list_(type_))
    assert reason_not_stored(pa.int8()) is None


def test_a_users_extension_type_is_its_values(tmp_path: Path) -> None:
    pa.register_extension_type(OfAUser())
    try:
        spec = job(tmp_path, pa.table({"id": ["a"], "x": COLUMNS["of_a_user"].slice(0, 1)}), keep_columns=["x"])
        assert open_source(spec).kept == (pa.field("x", pa.int64()),)
    finally:
        pa.unregister_extension_type("ray_job.tests.of_a_user")


def test_a_value_that_does_not_fit_the_other_files_type_is_its_rows_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"id": ["a", "b"], "x": pa.array([2**62 + 1, 5])}), tmp_path / "in" / "a.parquet")
    pq.write_table(pa.table({"id": ["c"], "x": [0.5]}), tmp_path / "in" / "b.parquet")
    spec = JobSpec.from_dict(
        {
            "input": {"path": str(tmp_path / "in"), "id_column": "id"},
            "prompt": {"template": "?"},
            "model": {"path": "builtin:noop"},
            "output": {"path": str(tmp_path / "out")},
        }
    )
    report = run_here(spec)
    assert (report.totals.answered, report.totals.error_codes) == (2, {"row_malformed": 1})
    rows = {row["row_id"]: row for row in rows_of(tmp_path / "out").to_pylist()}
    assert "column 'x' is double in other files" in rows["a"]["error"]["message"]
    assert (rows["b"]["x"], rows["c"]["x"]) == (5.0, 0.5)
