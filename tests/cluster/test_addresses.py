"""Addresses that cannot be used are refused at once, with what can be."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_job import JobSpec, run_job
from ray_job.cluster.submit import submit_job
from ray_job.errors import RayJobError, SpecError
from tests.chaos.harness import Job

from .nodes import free_ports


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265"])
def test_a_driver_from_outside_is_told_to_submit(
    address: str, make_job: Callable[[Path], Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    spec = JobSpec.from_dict(make_job(tmp_path).spec)
    with pytest.raises(SpecError, match=r"inside the cluster. Send it there with `python -m ray_job submit"):
        run_job(spec, stream=io.StringIO())


def test_a_driver_that_finds_nobody_says_so_at_once(
    make_job: Callable[[Path], Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(RayJobError, match=r"no Ray answers there \(Connection refused\); start one, or leave"):
        run_job(JobSpec.from_dict(make_job(tmp_path).spec), stream=io.StringIO())


def test_a_ray_that_does_not_start_in_time_says_so(
    make_job: Callable[[Path], Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(**_: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because …")  # Ray's own words

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", late)
    with pytest.raises(RayJobError, match="the machine is too busy"):
        run_job(JobSpec.from_dict(make_job(tmp_path).spec), stream=io.StringIO())


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


def test_the_first_address_that_is_given_is_taken(
    make_job: Callable[[Path], Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = JobSpec.from_dict(make_job(tmp_path).spec)
    given, of_the_jobs_api, of_ray = (f"http://127.0.0.1:{port}" for port in free_ports(3))
    for name, address in (("RAY_API_SERVER_ADDRESS", of_the_jobs_api), ("RAY_ADDRESS", of_ray)):
        monkeypatch.setenv(name, address)

    def refusing(address: str | None = None) -> str:
        with pytest.raises(RayJobError, match="no Ray dashboard answers there") as caught:
            submit_job(spec, address)
        return str(caught.value)

    before = dict(os.environ)
    assert refusing(given).startswith(f"{given}: ")
    assert refusing().startswith(f"{of_the_jobs_api}: ")
    assert dict(os.environ) == before
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS")
    assert refusing().startswith(f"{of_ray}: ")


class StartingHead:
    """Ray's client of a head whose agent comes a moment after it, as `ray start` leaves one on a busy machine."""

    def __init__(self) -> None:
        self.num_asked = 0

    def submit_job(self, submission_id: str, **_: object) -> str:
        self.num_asked += 1
        if self.num_asked < 3:
            raise RuntimeError(
                "Request failed with status code 500: No available agent to submit job, please try again later.."
            )
        return submission_id

    def list_jobs(self) -> list[object]:
        return []


def test_a_head_that_has_just_been_started_is_waited_for(
    make_job: Callable[[Path], Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = StartingHead()
    monkeypatch.setattr("ray_job.cluster.submit._connect", lambda address: head)
    monkeypatch.setattr("ray_job.cluster.submit._ASK_INTERVAL_S", 0.01)
    spec = JobSpec.from_dict(make_job(tmp_path).spec)
    assert submit_job(spec, "http://head:8265", "nightly").id == "nightly"
    assert head.num_asked == 3
    monkeypatch.setattr("ray_job.cluster.submit._LOST_S", 0.0)
    head.num_asked = 0
    with pytest.raises(RayJobError, match=r"did not take the job: .*No available agent.*--dashboard-agent-listen-port"):
        submit_job(spec, "http://head:8265", "nightly")
