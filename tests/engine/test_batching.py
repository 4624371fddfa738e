"""How many samples a static batch takes, by hand; the budget as a property is in test_static.py."""

from __future__ import annotations

import pytest

from ray_job.engine.batching import SampleSize, batch_rows, num_batches

SIZES = [SampleSize(10, 5), SampleSize(20, 30), SampleSize(40, 10), SampleSize(50, 10)]


@pytest.mark.parametrize(
    ("max_rows", "max_tokens", "expected"),
    [
        (4, 1000, 4),
        (3, 1000, 3),
        (1, 1000, 1),
        (4, 320, 4),  # 4 rows of 50 + 30
        (4, 319, 3),
        (4, 240, 3),
        (4, 239, 2),  # the third has the longer answer: 3 × (50 + 30)
        (4, 120, 2),  # 2 × (50 + 10)
        (4, 119, 1),
        (4, 1, 1),
    ],
)
def test_a_batch_is_as_large_as_its_padded_tokens_allow(max_rows: int, max_tokens: int, expected: int) -> None:
    assert batch_rows(SIZES, max_rows, max_tokens) == expected


@pytest.mark.parametrize(
    ("max_rows", "max_tokens", "expected"),
    [(4, 1000, 1), (2, 1000, 2), (3, 1000, 2), (1, 1000, 4), (4, 120, 2), (4, 100, 3), (4, 99, 4), (9, 1, 4)],
)
def test_batches_of_all_samples(max_rows: int, max_tokens: int, expected: int) -> None:
    assert num_batches(SIZES[::-1], max_rows, max_tokens) == expected
    assert num_batches([], max_rows, max_tokens) == 0
