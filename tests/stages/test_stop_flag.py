"""The stop flag without Ray: rows not taken on when it is set are left for another run; none is lost or done twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_job.cluster import job_store
from ray_job.cluster.job_store import StopFlag
from ray_job.cluster.signals import Stop
from ray_job.errors import Interrupted
from ray_job.inputs.datasource import RowDatasource
from ray_job.output.parts import Receipt
from ray_job.output.run import Run
from ray_job.output.status import job_status
from ray_job.rows import POSITION, output_schema, result_schema
from ray_job.stages.generate import GenerateActor
from ray_job.stages.open_job import open_job
from ray_job.stages.write import PartWriter
from tests.output.quiet_job import QuietJob

from .test_poison import Kept

NUM_ROWS, BLOCK_ROWS = 60, 8


class Countdown:
    """A stop flag in a job's store that is set when it has been asked so often."""

    def __init__(self, num_asked: int) -> None:
        self._flag = StopFlag(Kept())  # type: ignore[arg-type]
        self._num_left = num_asked

    def is_set(self) -> bool:
        if self._num_left == 0:
            self._flag.set()
        self._num_left -= 1
        return self._flag.is_set()


@pytest.fixture(autouse=True)
def always_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_store, "_ASK_INTERVAL_S", -1.0)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> QuietJob:
    monkeypatch.setattr("ray_job.inputs.formats.tables.parquet_splits.SPLIT_ROWS", 10)
    job = QuietJob(tmp_path, {"generation": {"max_new_tokens": 2}})
    job.write_input(NUM_ROWS)
    rows = job.folder / "rows.parquet"
    pq.write_table(pq.read_table(rows), rows, row_group_size=10)
    return job


def answered(actor: GenerateActor, block: pa.Table) -> pa.Table:
    async def tables() -> list[pa.Table]:
        return [table async for table in actor(block)]

    return pa.concat_tables(asyncio.run(tables()))


def read(job: QuietJob, run: Run | None, should_stop: Callable[[], bool], max_rows: int = BLOCK_ROWS) -> list[pa.Table]:
    _, source, _ = open_job(job.spec())
    reader = RowDatasource(source, max_rows, None if run is None else run.work.remaining, should_stop)
    return [table for task in reader.get_read_tasks(3) for table in task()]


def test_an_actor_takes_on_no_block_once_the_flag_is_set_and_finishes_the_one_at_hand(job: QuietJob) -> None:
    spec, source, preparer = open_job(job.spec())
    schema = output_schema(source.id_field.type, source.kept, spec.has_questions)
    flag = Countdown(1)  # set after the first block was taken on
    store = Kept()
    actor = GenerateActor(spec, schema, flag.is_set, store)
    blocks = [preparer(table) for table in read(job, None, lambda: False)[:3]]
    first, *others = (answered(actor, block) for block in blocks)
    assert first.column("status").to_pylist() == ["ok"] * BLOCK_ROWS
    assert first.column(POSITION).to_pylist() == list(range(BLOCK_ROWS))
    for other in others:
        assert (other.num_rows, other.schema) == (0, result_schema(schema))
    assert not store.values, "blocks that were not taken on are not in flight"
    actor.close()


@pytest.mark.parametrize("num_asked", [0, 1, 4, 6])
def test_reading_ends_where_the_flag_is_set_with_whole_tables_only(job: QuietJob, num_asked: int) -> None:
    tables = read(job, None, Countdown(num_asked).is_set)
    positions = [position for table in tables for position in table.column(POSITION).to_pylist()]
    assert len(positions) == len(set(positions)) < NUM_ROWS
    assert {f"row-{position}" for position in positions} == {
        row_id for table in tables for row_id in table.column("row_id").to_pylist()
    }
    if num_asked == 0:
        assert not positions
    everything = read(job, None, lambda: False)
    assert sorted(row for table in everything for row in table.column(POSITION).to_pylist()) == list(range(NUM_ROWS))


def stopped_run(job: QuietJob, mode: str, num_read: int, num_taken: int) -> int:
    """A run whose reading and actor find the flag set after so many asks; how many rows it committed."""
    spec, source, preparer = open_job(job.spec(mode))
    schema = output_schema(source.id_field.type, source.kept, spec.has_questions)
    stop, num_committed = Stop(20.0), 0
    with Run.open(spec, source) as run:
        run.begin("float32")
        actor = GenerateActor(spec, schema, Countdown(num_taken).is_set)
        writer = PartWriter(run.root, schema, run.number)
        for table in read(job, run, Countdown(num_read).is_set):
            results = answered(actor, preparer(table))
            num_committed += results.num_rows
            for receipt in Receipt.of_table(writer(results)):
                run.add(receipt)
        actor.close()
        stop._name = "SIGTERM"
        stop.check(run.num_left)
        run.finish()
    return num_committed


@pytest.mark.parametrize(("num_read", "num_taken"), [(100, 3), (4, 100), (5, 2), (100, 0), (0, 100)])
def test_rows_not_taken_on_are_left_for_the_next_run(job: QuietJob, num_read: int, num_taken: int) -> None:
    with pytest.raises(Interrupted, match=r"^stopped by SIGTERM; [1-9]\d* rows are left") as caught:
        stopped_run(job, "error", num_read, num_taken)
    ids, status = job.ids(), job_status(job.root)
    assert f"{NUM_ROWS - len(ids)} rows are left" in str(caught.value)
    assert (status.state, status.rows) == ("cancelled", len(ids))
    assert bool(ids) == (min(num_read, num_taken) > 0)
    assert stopped_run(job, "resume", num_read=100, num_taken=100) == NUM_ROWS - len(ids)
    assert job.ids() == sorted(f"row-{row}" for row in range(NUM_ROWS))
    job.verified()


def test_a_flag_set_when_all_is_done_leaves_a_finished_run(job: QuietJob) -> None:
    assert stopped_run(job, "error", num_read=100, num_taken=100) == NUM_ROWS
    job.verified()


def test_the_flag_is_asked_for_at_most_twice_a_second_and_never_again_once_it_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    store, now = Kept(), [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    setter, asker = StopFlag(store), StopFlag(store)  # type: ignore[arg-type]
    assert not any(asker.is_set() for _ in range(5))
    assert store.num_calls == 1
    setter.set()
    assert not asker.is_set(), "what was asked a moment ago holds"
    now[0] += 0.6
    assert asker.is_set()
    num_calls = store.num_calls
    now[0] += 100
    assert asker.is_set()
    assert store.num_calls == num_calls
