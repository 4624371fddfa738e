"""A source as a Ray datasource; the only file here that knows Ray."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import ReadTask
from ray.data.block import BlockMetadata

from ray_job.inputs.grouping import together
from ray_job.inputs.remaining import Remaining, with_account
from ray_job.inputs.source import Source, Split
from ray_job.inputs.windows import iter_windows

MAX_TASKS = 10_000
MAX_TABLE_ROWS = 256


class RowDatasource(ray.data.Datasource):
    """Reads a source's splits as Ray tasks, for `ray.data.read_datasource`.

    A task reads neighbouring splits one after the other and yields small tables; it carries its own splits, the source
    without any, and which of its rows are left to do. Rows are numbered over the whole input (`rows.POSITION`), and
    within a window of bounded size (`windows.py`) those with equal pictures stand together. Put
    `.repartition(target_num_rows_per_block=…)` behind it: Ray gathers a task's tables into blocks of its own size.

    Args:
        source: what to read.
        max_rows: most rows of a table.
        remaining: the rows left to do; by default all. A split with none is not opened.
        should_stop: asked before each table; once true, reading ends.
    """

    def __init__(
        self,
        source: Source,
        max_rows: int = MAX_TABLE_ROWS,
        remaining: Remaining | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._source = source
        self._max_rows = max_rows
        self._remaining = Remaining.all(source.num_rows) if remaining is None else remaining
        self._should_stop = should_stop
        stops = itertools.accumulate(split.num_rows for split in source.splits)
        placed = [
            (stop - split.num_rows, split)
            for split, stop in zip(source.splits, stops, strict=True)
            if self._remaining.stretch(stop - split.num_rows, stop).num_rows
        ]
        self._starts, self._splits = [start for start, _ in placed], [split for _, split in placed]

    @property
    def num_tasks(self) -> int:
        """How many to ask Ray for, one at least. With fewer it would cut their blocks in a stage of its own."""
        return min(max(1, len(self._splits)), MAX_TASKS)

    def get_name(self) -> str:
        """What Ray calls the reading stage."""
        return "Rows"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all rows, about."""
        return sum(split.num_bytes for split in self._source.splits)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """At most `parallelism` tasks (and MAX_TASKS), of neighbouring splits with about as many rows each."""
        source = self._source.without_splits()
        schema = with_account(source.schema)
        tasks = []
        starts = iter(self._starts)
        for group in group_splits(self._splits, min(parallelism, MAX_TASKS)):
            placed = [(next(starts), split) for split in group]
            first, (last, split) = placed[0][0], placed[-1]
            remaining = self._remaining.stretch(first, last + split.num_rows)
            metadata = BlockMetadata(
                num_rows=remaining.num_rows,
                size_bytes=sum(split.num_bytes for split in group)
                * remaining.num_rows
                // (last + split.num_rows - first),
                exec_stats=None,
                input_files=None,
            )
            read_rows = _reader(source, placed, remaining, self._max_rows, self._should_stop)
            tasks.append(ReadTask(read_rows, metadata, schema=schema, per_task_row_limit=per_task_row_limit))
        return tasks


def group_splits(splits: Sequence[Split], num_groups: int) -> list[tuple[Split, ...]]:
    """Neighbouring splits in at most `num_groups` groups, none empty, with about as many rows each."""
    groups: list[tuple[Split, ...]] = []
    left = sum(split.num_rows for split in splits)
    group: list[Split] = []
    num_rows = 0
    for split in splits:
        groups_left = num_groups - len(groups)
        if group and groups_left > 1 and num_rows + split.num_rows / 2 > left / groups_left:
            groups.append(tuple(group))
            left -= num_rows
            group, num_rows = [], 0
        group.append(split)
        num_rows += split.num_rows
    return [*groups, tuple(group)] if group else groups


def _reader(
    source: Source,
    placed: Sequence[tuple[int, Split]],
    remaining: Remaining,
    max_rows: int,
    should_stop: Callable[[], bool],
) -> Callable[[], Iterator[pa.Table]]:
    """Reads splits, each given with the place of its first row in the whole input."""

    def tables(start: int, split: Split) -> Iterator[pa.Table]:
        for table in source.read(split, max_rows):
            if should_stop():
                return
            yield remaining.select(table, start)
            start += table.num_rows

    def read_rows() -> Iterator[pa.Table]:
        for start, split in placed:
            for window in iter_windows(tables(start, split)):
                if should_stop():
                    return
                rows = together(window, source.image_columns)
                del window  # or it would stay while the next one is gathered; so would the rows
                for first in range(0, rows.num_rows, max_rows):
                    if should_stop():
                        return
                    yield rows.slice(first, max_rows)
                del rows

    return read_rows
