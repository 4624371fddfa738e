"""How fast a run goes, by when its newest parts came."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ray_job.output.manifest import InputRecord, Manifest, State
from ray_job.output.status import job_status
from ray_job.storage.places import Location
from tests.output.conftest import record, write


@pytest.mark.parametrize(("seconds_between", "rows_per_s"), [(0.1, None), (2.0, 1.5)])
def test_parts_tell_a_rate_once_they_are_a_second_apart(
    root: Location, tmp_path: Path, seconds_between: float, rows_per_s: float | None
) -> None:
    inputs = (InputRecord(identity="in", first_position=0, rows=100, known_rows=0),)
    Manifest(State.IN_PROGRESS, 2, {}, inputs, started_s=0.0, elapsed_s=0.0, input_rows=100).write(root)
    write(root, [record(position) for position in range(50, 90)], run=1)  # an earlier run's part tells nothing
    for number in range(3):
        known = set((tmp_path / "out" / "data").iterdir())
        write(root, [record(3 * number + offset) for offset in range(3)], run=2)
        (part,) = set((tmp_path / "out" / "data").iterdir()) - known
        os.utime(part, times=(1e9, 1e9 + number * seconds_between))
    status = job_status(root)
    assert (status.rows, status.parts, status.expected_rows) == (49, 4, 100)
    assert status.rows_per_s == rows_per_s


def test_a_part_from_a_clock_ahead_of_ours_is_new(root: Location, tmp_path: Path) -> None:
    Manifest(State.IN_PROGRESS, 1, {}, (InputRecord("in", 0, 4),), 0.0, 0.0, input_rows=4).write(root)
    assert job_status(root).newest_part_age_s is None
    write(root, [record(0)])
    (part,) = (tmp_path / "out" / "data").iterdir()
    os.utime(part, times=(4e9, 4e9))
    assert job_status(root).newest_part_age_s == 0.0
