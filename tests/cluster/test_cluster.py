"""One spec on one process, a local Ray, three nodes and by submission; stopped and resumed through Ray's job API."""

from __future__ import annotations

import io
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from ray_job import JobSpec, run_job
from ray_job.errors import RayJobError, SpecError
from ray_job.submit import submit_job
from tests.chaos.harness import Job

from .conftest import Answers
from .nodes import Nodes, free_ports

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
TOKEN = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head and two workers, open to anyone on this machine."""
    with Nodes(2, {"RAY_AUTH_MODE": "disabled"}) as started:
        yield started


@pytest.fixture(scope="module")
def guarded() -> Iterator[Nodes]:
    """A head and a worker that want a token."""
    with Nodes(1, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}) as started:
        yield started


def api(nodes: Nodes, method: str, path: str) -> Any:
    """Ray's own HTTP interface."""
    headers = {"Authorization": f"Bearer {nodes.env['RAY_AUTH_TOKEN']}"} if "RAY_AUTH_TOKEN" in nodes.env else {}
    response = requests.request(method, f"{nodes.url}/api/{path}", headers=headers, timeout=60)
    response.raise_for_status()
    return response.json()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.05)


def test_one_process_local_ray_and_three_nodes_answer_alike(
    nodes: Nodes, make_job: Callable[[Path], Job], expected: Answers, tmp_path: Path
) -> None:
    job = make_job(tmp_path / "local")
    code, text = job.run()
    assert code == 0, text
    assert job.answers() == expected
    assert {status for status, _, _ in expected.values()} == {"ok", "error"}

    job = make_job(tmp_path / "nodes")
    spec = str(job.folder / "job.yaml")
    code, text = nodes.call(
        "run", spec, "--set", "workers.min_actors=2", "--set", "workers.max_actors=3", RAY_ADDRESS=nodes.address
    )
    assert code == 0, text
    assert job.answers() == expected
    actors = api(nodes, "GET", "v0/actors?limit=1000")["data"]["result"]["result"]
    places = {actor["node_id"] for actor in actors if actor["class_name"].startswith("MapWorker(MapBatches(Generate")}
    assert len(places - {None}) == 2, "the actors should spread over the workers"


def test_a_submitted_job_is_followed_stopped_and_finished_under_one_id(
    nodes: Nodes, make_job: Callable[[Path], Job], expected: Answers, tmp_path: Path
) -> None:
    job = make_job(tmp_path)
    submit = ("submit", str(job.folder / "job.yaml"), "--address", nodes.url, "--job-id", "nightly")
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    first = nodes.start(logs[0], *submit)
    wait_until(lambda: "submitted at" in logs[0].read_text(), first, logs[0])
    second = nodes.start(logs[1], *submit)
    wait_until(lambda: "running already" in logs[1].read_text(), second, logs[1])
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    assert "nightly goes on" in logs[0].read_text()
    wait_until(lambda: job.num_committed() >= 16, second, logs[1])
    assert api(nodes, "POST", "jobs/nightly/stop") == {"stopped": True}
    assert second.wait(120) == 75, logs[1].read_text()
    assert "the same command does the rest" in logs[1].read_text()
    num_done = job.num_committed()
    assert 16 <= num_done < len(expected)
    assert job.manifest()["state"] == "cancelled"

    code, text = nodes.call(*submit, "--set", "generation.max_new_tokens=9")
    assert (code, "is the id of another job" in text) == (2, True), text
    code, text = nodes.call(*submit)
    assert (code, "nightly-2: done" in text) == (0, True), text
    assert job.manifest()["already_done"] == num_done
    assert job.answers() == expected
    (line,) = {line for line in text.splitlines() if line.startswith(f"{len(expected)}/{len(expected)} rows")}
    assert "\r" not in line

    code, text = nodes.call(*submit[:-2], "--mode", "resume", "--set", "generation.max_new_tokens=9")
    assert (code, "generation.max_new_tokens: was 16, is 9" in text) == (5, True), text


def test_rays_own_submission_with_a_token(
    guarded: Nodes, make_job: Callable[[Path], Job], expected: Answers, tmp_path: Path
) -> None:
    job = make_job(tmp_path / "job")
    spec = str(job.folder / "job.yaml")
    code, text = guarded.call("submit", spec, "--address", guarded.url, RAY_AUTH_TOKEN="wrong" * 8)
    assert (code, "RAY_AUTH_TOKEN_PATH" in text, "Traceback" in text) == (1, True, False), text

    environment = '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "40"}}'
    ray_submit = ["ray", "job", "submit", "--address", guarded.url, "--submission-id"]
    command = [*ray_submit, "raw", "--runtime-env-json", environment, "--working-dir", str(job.folder)]
    log = tmp_path / "raw.log"
    with log.open("w") as stream:
        submitted = subprocess.Popen(
            [*command, "--", "python", "-m", "ray_job", "run", "job.yaml"],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=guarded.env,
        )
    wait_until(lambda: job.num_committed() >= 16, submitted, log)
    assert api(guarded, "POST", "jobs/raw/stop") == {"stopped": True}
    submitted.wait(120)
    text = log.read_text()
    assert "SIGTERM: finishing the rows at hand" in text
    assert "error: stopped by SIGTERM" in text
    assert "Traceback" not in text
    assert job.manifest()["state"] == "cancelled"

    code, text = guarded.call("submit", spec, "--address", guarded.url, "--mode", "resume")
    assert code == 0, text
    assert job.answers() == expected
    code, text = guarded.execute(*ray_submit, "check", "--", "python", "-m", "ray_job", "verify", str(job.out))
    assert (code, "Job 'check' succeeded" in text) == (0, True), text


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265"])
def test_a_driver_from_outside_is_told_to_submit(
    address: str, make_job: Callable[[Path], Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    spec = JobSpec.from_dict(make_job(tmp_path).spec)
    with pytest.raises(SpecError, match=r"inside the cluster. Send it there with `python -m ray_job submit"):
        run_job(spec, stream=io.StringIO())


def test_submitting_nowhere_says_what_can_be_used(
    make_job: Callable[[Path], Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = JobSpec.from_dict(make_job(tmp_path).spec)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(SpecError, match="such as http://localhost:8265"):
        submit_job(spec)
    with pytest.raises(SpecError, match="give the dashboard's"):
        submit_job(spec, "ray://127.0.0.1:10001")
    with pytest.raises(RayJobError, match="no Ray dashboard answers there"):
        submit_job(spec, f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(SpecError, match="overwrite begins anew"):
        submit_job(JobSpec.from_dict({**spec.model_dump(), "output": {"path": "x", "mode": "overwrite"}}), "auto", "id")
