"""The datasource: how splits become tasks, and every row once through a real Ray."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
from hypothesis import given
from hypothesis import strategies as st

from ray_job.inputs.datasource import MAX_TASKS, RowDatasource, group_splits
from ray_job.inputs.source import Source, Split

from .conftest import opened


@given(sizes=st.lists(st.integers(1, 50), max_size=60), num_groups=st.integers(1, 20))
def test_groups_hold_every_split_once_in_order_and_evenly(sizes: list[int], num_groups: int) -> None:
    splits = [Split(str(index), size, size) for index, size in enumerate(sizes)]
    groups = group_splits(splits, num_groups)
    assert [split for group in groups for split in group] == splits
    assert len(groups) <= num_groups
    assert all(groups)
    if sizes:
        most = max(sum(split.num_rows for split in group) for group in groups)
        assert most <= sum(sizes) / min(num_groups, len(sizes)) + 2 * max(sizes)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setattr("ray_job.inputs.formats.tables.parquet_splits.SPLIT_ROWS", 100)
    for file in range(3):
        table = pa.table(
            {"n": pa.array(range(1000 * file, 1000 * file + 1000)), "image": [b"%0100d" % n for n in range(1000)]}
        )
        pq.write_table(table, tmp_path / f"{file}.parquet", row_group_size=50)
    return opened(tmp_path)


def test_tasks_are_few_small_and_complete(source: Source) -> None:
    assert len(source.splits) == 30
    for parallelism, expected in ((1, 1), (7, 7), (1000, 30), (10**6, 30)):
        tasks = RowDatasource(source).get_read_tasks(parallelism)
        assert len(tasks) == expected
        assert sum(task.metadata.num_rows or 0 for task in tasks) == 3000
    assert MAX_TASKS <= 10_000
    assert all(len(pickle.dumps(source.without_splits())) + len(pickle.dumps(split)) < 5000 for split in source.splits)
    tables = [table for task in RowDatasource(source, max_rows=30).get_read_tasks(4) for table in task()]
    assert max(table.num_rows for table in tables) == 30
    whole = pa.concat_tables(tables)
    assert whole.column("_rj_position").to_pylist() == list(range(3000))
    assert whole.column("n").to_pylist() == list(range(3000))


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
def test_every_row_arrives_once_in_small_blocks(source: Source, local_ray: None) -> None:
    dataset = ray.data.read_datasource(RowDatasource(source), override_num_blocks=5)
    dataset = dataset.repartition(target_num_rows_per_block=32)
    blocks = list(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    assert max(block.num_rows for block in blocks) <= 32
    rows = pa.concat_tables(blocks).sort_by("_rj_position")
    assert rows.column("n").to_pylist() == list(range(3000))
    assert len(set(rows.column("row_id").to_pylist())) == 3000
