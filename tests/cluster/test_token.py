"""A cluster that wants a token, and Ray's own `ray job submit` on it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.harness import Job

from .conftest import Answers
from .nodes import Nodes, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def guarded() -> Iterator[Nodes]:
    """A head and a worker that want a token."""
    with Nodes(1, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}) as started:
        yield started


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
    assert guarded.api("POST", "jobs/raw/stop") == {"stopped": True}
    submitted.wait(120)
    text = guarded.api("GET", "jobs/raw/logs")["logs"]
    assert "SIGTERM: finishing the rows in flight" in text
    assert "error: stopped by SIGTERM" in text
    assert "Traceback" not in text
    assert job.manifest()["state"] == "cancelled"

    code, text = guarded.call("submit", spec, "--address", guarded.url, "--mode", "resume")
    assert code == 0, text
    assert job.answers() == expected
    code, text = guarded.execute(*ray_submit, "check", "--", "python", "-m", "ray_job", "verify", str(job.out))
    assert (code, "Job 'check' succeeded" in text) == (0, True), text
