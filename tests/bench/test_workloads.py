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
    assert len(set(digests)) == len(digests)


def test_many_questions_share_a_picture() -> None:
    rows = MAKERS["many-questions"](Workload(0, 1000, num_crops=1), 16)
    assert len({row.pictures[0].digest for row in rows}) == 2


@pytest.mark.parametrize(("seed", "first"), [(0, 4513), (4, 4094), (5, 4094)])
def test_every_fourth_row_is_long_and_the_first_passes_the_switch(seed: int, first: int) -> None:
    rows = MAKERS["long"](Workload(seed, 1000, num_crops=4), 8)
    lengths = [len(row.input_ids) for row in rows]
    assert lengths[0] == first
    assert lengths[0] + rows[0].params.max_new_tokens > 4096
    assert [position for position, length in enumerate(lengths) if length >= 3800] == [0, 4]
    assert max(lengths[1:4] + lengths[5:]) < 1000
