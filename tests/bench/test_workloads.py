"""The benchmark's rows: the same for every runner, and shared only where sharing is asked for."""

from __future__ import annotations

import pytest

from ray_job.bench.workloads import MAKERS, Workload


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_every_runner_gets_the_same_rows(name: str) -> None:
    rows = MAKERS[name](Workload(3, 1000, num_crops=1), 9)
    alone = MAKERS[name](Workload(3, 1000, num_crops=1, share=False), 9)
    assert [(row.key, row.input_ids, row.params) for row in rows] == [
        (row.key, row.input_ids, row.params) for row in alone
    ]
    digests = [picture.digest for row in alone for picture in row.pictures]
    assert name == "long" or len(set(digests)) == len(digests)


def test_many_questions_share_a_picture() -> None:
    rows = MAKERS["many-questions"](Workload(0, 1000, num_crops=1), 16)
    assert len({row.pictures[0].digest for row in rows}) == 2


def test_long_rows_pass_the_switch() -> None:
    rows = MAKERS["long"](Workload(0, 1000, num_crops=4), 8)
    lengths = [len(row.input_ids) for row in rows]
    assert [length > 4096 for length in lengths] == [True, False, False, False] * 2
    assert max(length for length in lengths if length <= 4096) < 1500
