"""What `verify` calls good and what it names: types that Parquet changes, damaged, foreign and doubled parts."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_job import run_job
from ray_job.errors import RayJobError
from ray_job.output.account import Account
from ray_job.output.compaction import drop_superseded, read_part
from ray_job.output.ledger import Ledger
from ray_job.output.manifest import InputRecord, Manifest, State
from ray_job.output.parts import stored_schema, write_part, written_schema
from ray_job.output.totals import Totals
from ray_job.output.verify import verify
from ray_job.rows import RESULT_FIELDS, output_schema, result_schema
from ray_job.stages.write import PartWriter
from ray_job.storage.damage import is_damage
from ray_job.storage.places import Location

from .conftest import FAILED, record
from .quiet_job import QuietJob

NUM_ROWS = 10
NESTED = pa.list_(pa.field("item", pa.struct([("at", pa.timestamp("s")), ("days", pa.list_(pa.date64()))])))
CHANGED_TYPES = {  # by Parquet
    "timestamp[s]": pa.timestamp("s"),
    "timestamp[s, tz]": pa.timestamp("s", "Europe/Berlin"),
    "time32[s]": pa.time32("s"),
    "date64": pa.date64(),
    "list": pa.list_(pa.int64()),
    "large_list": pa.large_list(pa.string()),
    "fixed_size_list": pa.list_(pa.int8(), 2),
    "list of other name": pa.list_(pa.field("x", pa.int32(), nullable=False)),
    "map": pa.map_(pa.string(), pa.timestamp("s")),
    "struct": pa.struct([("a", pa.time32("s")), ("b", pa.list_(pa.float32()))]),
    "nested": NESTED,
    "dictionary of numbers": pa.dictionary(pa.int8(), pa.int64()),
}
KEPT_TYPES = {
    str(kind): kind
    for kind in (
        *(pa.timestamp(unit, zone) for unit in ("ms", "us", "ns") for zone in (None, "UTC")),
        *(pa.duration(unit) for unit in ("s", "ms", "us", "ns")),
        *(pa.time32("ms"), pa.time64("us"), pa.time64("ns"), pa.date32(), pa.null(), pa.bool_()),
        *(pa.float16(), pa.float32(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.int8()),
        *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary(4), pa.large_binary()),
        *(pa.decimal128(10, 2), pa.decimal256(40, 2), pa.dictionary(pa.int32(), pa.string())),
    )
}


def finished_output(root: Location, kind: pa.DataType, is_old: bool = True) -> pa.Schema:
    """An output with a kept column of a type; `is_old`: as one was written before schemas said what Parquet holds."""
    kept = pa.field("kept", kind)
    old = pa.schema([pa.field("row_id", pa.string()), kept, *RESULT_FIELDS])
    schema = old if is_old else output_schema(pa.string(), [kept], False)
    for run, statuses in enumerate((["ok", FAILED, FAILED], ["", "ok", ""]), start=1):
        rows = [record(row, status) for row, status in enumerate(statuses) if status]
        columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in result_schema(schema)]
        PartWriter(root, schema, run)(pa.table(columns, schema=result_schema(schema)))
    fields = {f"output.columns.{field.name}": str(field.type) for field in schema}
    inputs, totals = (InputRecord("in", 0, 3),), Totals.of_ledger(Ledger.scan(root))
    Manifest(State.COMPLETED, 2, fields, inputs, 0.0, 0.0, input_rows=3, totals=totals).write(root)
    Path(root.path, "_SUCCESS").touch()
    return schema


@pytest.mark.parametrize("is_compacted", [False, True])
@pytest.mark.parametrize("name", [*CHANGED_TYPES, *KEPT_TYPES])
def test_a_type_that_parquet_changes_is_no_fault_of_the_output(root: Location, name: str, is_compacted: bool) -> None:
    schema = finished_output(root, {**CHANGED_TYPES, **KEPT_TYPES}[name])
    ledger = Ledger.scan(root)
    assert ledger.num_superseded == 1
    if is_compacted:
        drop_superseded(root, ledger)
        ledger = Ledger.scan(root)
    for part in ledger.parts:
        assert read_part(part).schema == stored_schema(schema)
    assert (str(stored_schema(schema)) != str(schema)) == (name in CHANGED_TYPES)
    assert not [problem for problem in verify(root).problems if "column" in problem or "damaged" in problem]


@pytest.mark.parametrize("name", [*CHANGED_TYPES, *KEPT_TYPES])
def test_a_schema_that_says_what_parquet_holds_is_good(root: Location, name: str) -> None:
    schema = finished_output(root, {**CHANGED_TYPES, **KEPT_TYPES}[name], is_old=False)
    assert stored_schema(schema) == schema
    drop_superseded(root, Ledger.scan(root))
    assert not [problem for problem in verify(root).problems if "column" in problem or "damaged" in problem]


def test_parts_written_again_with_the_types_they_were_read_with_are_good(root: Location) -> None:
    """As compaction did before it kept the first type."""
    finished_output(root, pa.timestamp("s"))
    part = Ledger.scan(root).parts[0]
    write_part(root, part.name, read_part(part), part.account)
    assert Ledger.scan(root).parts[0].schema.field("kept").type == pa.timestamp("ms")
    assert not [problem for problem in verify(root).problems if "column" in problem]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda table: table.drop_columns(["latency_ms"]), "its columns are"),
        (lambda table: table.select([*reversed(table.column_names)]), "its columns are"),
        (lambda table: table.append_column("more", pa.nulls(table.num_rows)), "its columns are"),
        (
            lambda table: table.set_column(1, "kept", pa.nulls(len(table), pa.timestamp("us"))),
            "kept is timestamp[us]",
        ),
        (lambda table: table.set_column(1, "kept", pa.nulls(len(table), pa.string())), "its column kept is string"),
    ],
)
def test_other_columns_than_the_jobs_are_named(
    root: Location, change: Callable[[pa.Table], pa.Table], problem: str
) -> None:
    finished_output(root, pa.timestamp("s"))
    part = Ledger.scan(root).parts[0]
    write_part(root, part.name, change(read_part(part)), part.account)
    assert [found for found in verify(root).problems if part.name in found and problem in found]


def test_a_part_without_arrows_schema_is_compared_as_it_is_read(root: Location) -> None:
    schema = finished_output(root, pa.timestamp("ms"))
    part = Ledger.scan(root).parts[0]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, store_schema=False) as writer:
        writer.write_table(read_part(part))
        writer.add_key_value_metadata({"ray_job": part.account.to_footer()})
    Path(part.location.path).write_bytes(sink.getvalue())
    assert written_schema(pq.read_metadata(part.location.path)) == schema
    assert not [problem for problem in verify(root).problems if "column" in problem]


@pytest.fixture
def job(tmp_path: Path) -> QuietJob:
    """A finished run of ten rows in three parts, the last row of each failed."""
    job = QuietJob(tmp_path)
    job.write_input(NUM_ROWS)
    job.run(change=failing)
    return job


def failing(row: int) -> dict[str, Any]:
    return record(row, FAILED) if row % 4 == 3 else {}


def resumed(job: QuietJob) -> None:
    """What `resume` makes of an output is good and whole."""
    job.run("resume", failing)
    job.verified()
    assert job.ids() == sorted(f"row-{row}" for row in range(NUM_ROWS))


def page_offsets(part: Path) -> dict[str, range]:
    """Where each column's pages lie."""
    group = pq.read_metadata(part).row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    starts = [column.dictionary_page_offset or column.data_page_offset for column in columns]
    return {
        column.path_in_schema: range(start, start + column.total_compressed_size)
        for column, start in zip(columns, starts, strict=True)
    }


@pytest.mark.parametrize("column", ["row_id", "generated_text", "status", "latency_ms"])
def test_a_flipped_bit_in_a_page_is_found_by_its_checksum_and_the_part_is_named(job: QuietJob, column: str) -> None:
    part = job.parts()[1]
    content = part.read_bytes()
    place = page_offsets(part)[column][-1]  # of the page's data, behind its header
    part.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(Exception, match="CRC checksum verification failed"):
        pq.ParquetFile(part, page_checksum_verification=True).read()
    (problem,) = [problem for problem in verify(job.root).problems if "CRC" in problem]
    assert problem.startswith(f"{part}: is damaged: could not verify page integrity")
    assert problem.endswith("Delete it; --mode resume then does its rows again")
    assert not Ledger.scan(job.root).unreadable, "footers do not tell"

    # A finished run is not read again by resuming; doing what the message says mends it.
    before = part.read_bytes()
    run_job(job.spec("resume"), stream=io.StringIO())
    assert part.read_bytes() == before
    part.unlink()
    resumed(job)


def test_a_damaged_id_is_found_before_a_run_is_called_complete(job: QuietJob) -> None:
    part = job.parts()[0]
    (job.out / "_SUCCESS").unlink()
    content = part.read_bytes()
    place = page_offsets(part)["row_id"][-1]
    part.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(RayJobError, match=f"{part}: is damaged: .*Delete it; --mode resume"):
        run_job(job.spec("resume"), stream=io.StringIO())
    assert not (job.out / "_SUCCESS").exists()
    part.unlink()
    resumed(job)


def test_a_changed_byte_is_found_or_changes_no_row(job: QuietJob) -> None:
    """Whatever is damaged is told of the part: no damage ends the check, or is taken for a storage that fails."""
    part = job.parts()[0]
    content, rows, chance = part.read_bytes(), pq.read_table(part), random.Random(0)
    footer = range(len(content) - int.from_bytes(content[-8:-4], "little") - 8, len(content))
    num_found = 0
    for place in [*chance.sample(range(footer.start), 50), *chance.sample(footer, 100)]:
        changed = bytes([content[place] ^ chance.choice((1, 128, 255))])
        part.write_bytes(content[:place] + changed + content[place + 1 :])
        if verify(job.root).problems:
            num_found += 1
        else:
            (same,) = (found for found in Ledger.scan(job.root).parts if found.name == f"data/{part.name}")
            assert read_part(same).equals(rows), f"byte {place} of {len(content)}"
    assert num_found > 75
    part.write_bytes(content)
    job.verified()


def torn(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-40])


def torn_in_its_footer(part: Path) -> None:
    content = bytearray(part.read_bytes())
    content[-500:-480] = b"\xff" * 20
    part.write_bytes(content)


def torn_before_its_footer(part: Path) -> None:
    """The end is there, the pages are not: what a copy leaves that skipped a block."""
    content = part.read_bytes()
    part.write_bytes(b"\0" * 1000 + content[1000:])


def empty(part: Path) -> None:
    part.write_bytes(b"")


def of_another_program(part: Path) -> None:
    pq.write_table(pa.table({"id": [1], "answer": ["x"]}), part)


def with_a_short_account(part: Path) -> None:
    table, account = pq.read_table(part), Account.of_footer(pq.read_metadata(part).metadata[b"ray_job"])
    write_part(Location(pa.fs.LocalFileSystem(), str(part.parent.parent)), f"data/{part.name}", table.slice(1), account)


@pytest.mark.parametrize("damage", [torn, torn_in_its_footer, empty, of_another_program, with_a_short_account])
def test_a_torn_or_foreign_part_is_named_and_its_rows_are_done_again(
    job: QuietJob, damage: Callable[[Path], None]
) -> None:
    part = job.parts()[1]
    damage(part)
    ledger = Ledger.scan(job.root)
    assert list(ledger.unreadable) == [f"data/{part.name}"]
    problems = verify(job.root).problems
    assert [problem for problem in problems if problem.startswith(f"data/{part.name}: damaged: ")], problems
    assert "3 of the input's 10 rows are missing" in problems
    (job.out / "notes.parquet").write_text("mine")
    resumed(job)
    assert (job.out / "notes.parquet").read_text() == "mine"


def test_a_foreign_file_beside_the_parts_is_named_and_removed(job: QuietJob) -> None:
    alien = job.out / "data" / "part-00000-of-00007.parquet"
    of_another_program(alien)
    (problem,) = verify(job.root).problems
    assert problem == f"data/{alien.name}: damaged: its footer has no account of its rows"
    resumed(job)
    assert not alien.exists()


def test_a_part_of_another_job_is_named(job: QuietJob, tmp_path: Path) -> None:
    other = QuietJob(tmp_path / "other", {"input": {"keep_columns": []}})
    other.folder.mkdir()
    other.write_input(NUM_ROWS)
    other.run()
    (job.parts()[0]).unlink()
    shutil.copyfile(other.parts()[0], job.out / "data" / "part-0001-strange.parquet")
    problems = verify(job.root).problems
    assert [problem for problem in problems if problem.startswith("data/part-0001-strange.parquet: its columns are")]


def test_pages_that_are_gone_are_found_by_reading_them(job: QuietJob) -> None:
    part = job.parts()[0]
    torn_before_its_footer(part)
    (problem,) = [problem for problem in verify(job.root).problems if "damaged" in problem]
    assert str(part) in problem


def test_a_part_copied_under_another_name_is_told_and_dropped(job: QuietJob) -> None:
    part = job.parts()[0]
    shutil.copyfile(part, part.with_name("part-0001-copy.parquet"))
    problems = verify(job.root).problems
    assert "3 records are doubled: their rows have another that counts" in problems
    assert not any("missing" in problem for problem in problems)
    resumed(job)
    assert len(job.parts()) == 3


def test_the_same_row_twice_in_one_part_is_told_and_dropped(job: QuietJob) -> None:
    part = next(part for part in Ledger.scan(job.root).parts if part.folder == "data")
    account, rows = part.account, read_part(part)
    places = np.array([0, *range(len(account.keys))])
    doubled = Account(1, account.keys[places], account.num_questions[places], account.attempts[places], 99, 99)
    write_part(job.root, part.name, rows.take(places), doubled)
    problems = verify(job.root).problems
    assert "1 records are doubled: their rows have another that counts" in problems
    resumed(job)


def test_rows_in_the_wrong_folder_or_without_an_id_are_told(job: QuietJob) -> None:
    parts = Ledger.scan(job.root).parts
    data, errors = (next(part for part in parts if part.folder == folder) for folder in ("data", "errors"))
    rows = read_part(data)
    write_part(job.root, data.name, rows.set_column(0, "row_id", pa.nulls(rows.num_rows, pa.string())), data.account)
    shutil.copyfile(errors.location.path, Path(job.out, "data", "part-0009-error.parquet"))
    problems = verify(job.root).problems
    assert f"{data.name}: {rows.num_rows} rows have no id" in problems
    assert "data/part-0009-error.parquet: the status of 1 rows is not 'ok'" in problems


def test_rows_that_are_missing_torn_or_of_no_input_are_counted(job: QuietJob) -> None:
    manifest = json.loads((job.out / "_manifest.json").read_text())
    manifest["inputs"][0]["rows"] = 8
    (job.out / "_manifest.json").write_text(json.dumps(manifest))
    assert verify(job.root).problems == ("2 rows are of no input",)
    manifest["inputs"][0]["rows"] = 12
    (job.out / "_manifest.json").write_text(json.dumps(manifest))
    assert verify(job.root).problems == ("2 of the input's 12 rows are missing",)
    manifest["inputs"][0]["rows"], manifest["totals"]["answered"] = 10, 7
    (job.out / "_manifest.json").write_text(json.dumps(manifest))
    assert verify(job.root).problems == ("the parts hold answered 8, the manifest says 7",)
    manifest["totals"]["answered"], manifest["duplicates"]["rows"] = 8, 3
    (job.out / "_manifest.json").write_text(json.dumps(manifest))
    assert verify(job.root).problems == ("0 rows repeat an id; the manifest says 3",)


def test_a_row_with_a_question_too_few_is_told(root: Location) -> None:
    from .conftest import schema, write

    write(root, [record(0, question=question, num_questions=3) for question in (0, 2)], has_questions=True)
    fields = {f"output.columns.{field.name}": str(field.type) for field in schema(True)}
    totals = Totals.of_ledger(Ledger.scan(root))
    Manifest(State.COMPLETED, 1, fields, (InputRecord("in", 0, 1),), 0.0, 0.0, input_rows=1, totals=totals).write(root)
    Path(root.path, "_SUCCESS").touch()
    assert verify(root).problems == ("1 rows have more or fewer records than questions",)
    assert totals.rows == 0, "a row with a question missing is not done"


def test_an_unfinished_run_and_a_marker_without_one_are_told(job: QuietJob) -> None:
    manifest = json.loads((job.out / "_manifest.json").read_text())
    (job.out / "_manifest.json").write_text(json.dumps({**manifest, "state": "cancelled"}))
    assert verify(job.root).problems == (
        "the run is not finished (cancelled); finish it with --mode resume",
        "_SUCCESS is there, and the manifest says cancelled",
    )
    resumed(job)


@pytest.mark.parametrize(
    ("error", "is_part_damaged"),
    [
        (OSError(5, "Input/output error"), False),
        (FileNotFoundError(2, "No such file or directory"), False),
        (OSError("When reading information for key 'x': AWS Error SLOW_DOWN during HeadObject operation"), False),
        (OSError("google::cloud::Status(UNAVAILABLE: try again)"), False),
        (OSError("Couldn't deserialize thrift: No more data to read."), True),
        (OSError("could not verify page integrity, CRC checksum verification failed for page_ordinal 0"), True),
        (pa.ArrowInvalid("Parquet magic bytes not found in footer"), True),
        (pa.ArrowNotImplementedError("Integers with less than 8 bits not implemented"), True),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), True),
        (NotImplementedError("this file system"), False),
        (pa.ArrowCancelled("Operation cancelled"), False),
    ],
)
def test_damage_is_told_from_a_storage_that_fails(error: Exception, is_part_damaged: bool) -> None:
    assert is_damage(error) == is_part_damaged


def test_a_finished_output_that_something_was_added_to_is_cleaned_by_resuming(job: QuietJob) -> None:
    """With the command itself: nothing is left to do, and still there is something to mend."""
    part = job.parts()[0]
    shutil.copyfile(part, part.with_name("part-0001-copy.parquet"))
    of_another_program(job.out / "data" / "part-00000.parquet")
    assert not verify(job.root).is_good
    report = run_job(job.spec("resume"), stream=io.StringIO())
    assert (report.input_rows, report.already_done) == (NUM_ROWS, NUM_ROWS)
    job.verified()
    assert len(job.parts()) == 3
