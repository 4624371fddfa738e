"""Which attempt of a job id the next submission is, whatever became of the earlier ones."""

from __future__ import annotations

from typing import Any

import pytest
from ray.dashboard.modules.job.common import JobStatus
from ray.dashboard.modules.job.pydantic_models import JobDetails, JobType

from ray_job import JobSpec
from ray_job.cluster.submit import _submit
from ray_job.errors import SpecError

SPEC = JobSpec.from_dict({"input": {"path": "/in"}, "output": {"path": "/out"}})


class Head:
    """What a head answers about the jobs it knows."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobDetails] = {}

    def list_jobs(self) -> list[JobDetails]:
        return list(reversed(self.jobs.values()))  # in no order that tells

    def submit_job(self, entrypoint: str, submission_id: str, runtime_env: Any, metadata: dict[str, str]) -> str:
        if submission_id in self.jobs:
            raise RuntimeError(f"Job with submission_id {submission_id} already exists")
        self.add(submission_id, JobStatus.RUNNING, metadata)
        return submission_id

    def add(self, submission_id: str, status: JobStatus, metadata: dict[str, str]) -> None:
        self.jobs[submission_id] = JobDetails(
            type=JobType.SUBMISSION, submission_id=submission_id, status=status, entrypoint="", metadata=metadata
        )

    def end(self, submission_id: str, status: JobStatus = JobStatus.SUCCEEDED) -> None:
        self.jobs[submission_id] = self.jobs[submission_id].model_copy(update={"status": status})


@pytest.fixture
def head() -> Head:
    """Knows three attempts of `nightly` that ended in three ways."""
    head = Head()
    for number, status in enumerate((JobStatus.STOPPED, JobStatus.FAILED, JobStatus.SUCCEEDED), 1):
        name = "nightly" if number == 1 else f"nightly-{number}"
        assert _submit(head, SPEC, "nightly") == (name, True)
        assert _submit(head, SPEC, "nightly") == (name, False), "it is attached to while it runs"
        head.end(name, status)
    return head


@pytest.mark.parametrize(
    ("deleted", "then"),
    [
        ((), "nightly-4"),
        (("nightly",), "nightly-4"),
        (("nightly-2",), "nightly-4"),
        (("nightly", "nightly-2"), "nightly-4"),
        (("nightly-3",), "nightly-3"),
        (("nightly", "nightly-3"), "nightly-3"),
        (("nightly", "nightly-2", "nightly-3"), "nightly"),
    ],
)
def test_the_newest_attempt_that_is_left_decides_the_next_number(
    head: Head, deleted: tuple[str, ...], then: str
) -> None:
    for name in deleted:
        del head.jobs[name]
    assert _submit(head, SPEC, "nightly") == (then, True)
    assert _submit(head, SPEC, "nightly") == (then, False)


def test_attempts_beyond_the_ninth_are_numbers_not_texts(head: Head) -> None:
    for number in range(4, 12):
        assert _submit(head, SPEC, "nightly") == (f"nightly-{number}", True)
        head.end(f"nightly-{number}")


def test_an_attempts_id_that_another_job_has_is_left_out(head: Head) -> None:
    head.add("nightly-4", JobStatus.SUCCEEDED, {"ray_job_id": "nightly-4", "ray_job_output": "/elsewhere"})
    assert _submit(head, SPEC, "nightly") == ("nightly-5", True)
    head.add("other", JobStatus.SUCCEEDED, {})
    with pytest.raises(SpecError, match="'other' is taken by another job of this cluster"):
        _submit(head, SPEC, "other")


def test_an_id_belongs_to_the_output_of_its_newest_attempt(head: Head) -> None:
    elsewhere = JobSpec.from_dict({"input": {"path": "/in"}, "output": {"path": "/elsewhere"}})
    with pytest.raises(SpecError, match="'nightly' is the id of another job, with output /out"):
        _submit(head, elsewhere, "nightly")
    _submit(head, SPEC, "nightly")
    changed = SPEC.model_copy(update={"generation": SPEC.generation.model_copy(update={"max_new_tokens": 3})})
    with pytest.raises(SpecError, match="nightly-4 runs with another spec"):
        _submit(head, changed, "nightly")
