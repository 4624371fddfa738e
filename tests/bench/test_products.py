"""`bench products` measures both ways over every weight and number of rows that are asked for."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from ray_job.bench.products import main
from ray_job.models.threads import restore_threads


def test_every_product_is_measured_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as session:
        restore_threads(session)
        assert main(["--dtype", "float32", "--rows", "2", "5", "--threads", "1"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)["gflops_per_s"]
    assert len(found) == len(table) - 1 == 10
    assert {each["rows"] for each in found} == {2, 5}
    assert all(0 < rate < 1e5 for each in found for rate in (each["linear"], each["packed"]))
