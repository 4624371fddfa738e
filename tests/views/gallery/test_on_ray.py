"""The warm actor on a Ray, and what it tells Prometheus there."""

from __future__ import annotations

import re
import shutil
import socket
import tempfile
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from ray_job import JobSpec, preview
from ray_job.cluster.warm_actor import warm_actor
from ray_job.demo.run import make_inputs
from ray_job.metrics.catalog import METRICS
from tests.conftest import small_ray

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
_PATIENCE_S = 60


@pytest.fixture(scope="module")
def metrics_port() -> Iterator[int]:
    """One Ray, which exports its metrics there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    folder = tempfile.mkdtemp(prefix="rj-")  # short: sockets lie in it
    options = {"_temp_dir": folder, "_metrics_export_port": port, "object_store_memory": 100 * 2**20}
    with small_ray(**options, _system_config={"metrics_report_interval_ms": 500}):
        yield port
        warm_actor().release()
    shutil.rmtree(folder, ignore_errors=True)


def samples(port: int) -> dict[str, dict[str | None, float]]:
    """By metric, its value by label."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    labels = {metric.exported_name: metric.label for metric in METRICS}
    found: dict[str, dict[str | None, float]] = defaultdict(dict)
    for name, tags, value in re.findall(r"^(ray_job_\w+){(.*)} (\S+)$", text, re.MULTILINE):
        if name in labels:
            label = re.search(rf'\b{labels[name]}="([^"]*)"', tags) if labels[name] else None
            found[name][label[1] if label else None] = float(value)
    return found


def test_previews_share_one_actor_whose_metrics_count_their_rows(metrics_port: int, tmp_path: Path) -> None:
    make_inputs(tmp_path / "demo", 12, seed=4)
    spec = JobSpec.from_yaml(tmp_path / "demo" / "job.yaml")
    tables = [preview(spec, 40).table]
    actor = warm_actor().actor
    greedy = spec.model_copy(update={"generation": spec.generation.model_copy(update={"max_new_tokens": 2})})
    tables.append(preview(greedy, 40).table)
    assert warm_actor().actor is actor
    statuses = Counter(status for table in tables for status in table.column("status").to_pylist())
    errors = Counter(e["code"] for table in tables for e in table.column("error").to_pylist() if e is not None)
    usages = [usage for table in tables for usage in table.column("usage").to_pylist() if usage is not None]
    assert statuses["error"] > 0
    expected = {
        "ray_job_rows_total": dict(statuses),
        "ray_job_errors_total": dict(errors),
        "ray_job_prompt_tokens_total": {None: sum(usage["prompt_tokens"] for usage in usages)},
        "ray_job_completion_tokens_total": {None: sum(usage["completion_tokens"] for usage in usages)},
        "ray_job_queue_rows": {None: 0},
        "ray_job_running_rows": {None: 0},
        "ray_job_slots": {None: spec.batching.max_batch_rows},
    }
    deadline_s = time.monotonic() + _PATIENCE_S
    while {name: found for name, found in samples(metrics_port).items() if name in expected} != expected:
        assert time.monotonic() < deadline_s, samples(metrics_port)
        time.sleep(0.5)
    found = samples(metrics_port)
    never = {"ray_job_put_back_rows_total", "ray_job_memory_failures_total"}  # nothing of the kind happened
    assert {metric.exported_name for metric in METRICS} - set(found) <= {*never, "ray_job_duplicate_rows_total"}
    assert {"prepare", "prefill", "vision", "schedule"} <= set(found["ray_job_stage_seconds_total"])
    assert found["ray_job_pictures_encoded_total"][None] < found["ray_job_pictures_wanted_total"][None]


def test_an_actor_that_died_between_previews_is_replaced(metrics_port: int, tmp_path: Path) -> None:
    make_inputs(tmp_path / "demo", 12, seed=4)
    spec = JobSpec.from_yaml(tmp_path / "demo" / "job.yaml", ["model.path=builtin:noop"])
    preview(spec, 2)
    before = warm_actor().actor
    ray.kill(before)
    assert preview(spec, 2).table.num_rows == 2
    assert warm_actor().actor is not before
