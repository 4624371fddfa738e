"""The README's scheduled jobs, word for word, against a real head; each where its scheduler is installed.

Only the spec's path and the head's address are replaced. The output is in a bucket, as the README says.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from tests.chaos.harness import Job
from tests.test_docs import SCHEDULERS as BLOCKS

from .conftest import Answers
from .nodes import Nodes, wait_until

BUCKET = "answers"


@dataclass(frozen=True)
class Scheduler:
    """How a user tries a scheduled job out, the README's block being `captions.py` in the folder."""

    package: str
    day: str
    command: Sequence[str]
    retries: bool = True


SCHEDULERS = {
    "Prefect": Scheduler(
        "prefect", "2026-11-20", (sys.executable, "-c", "from captions import captions; captions('2026-11-20')")
    ),
    "Dagster": Scheduler(
        "dagster",
        "2026-11-19",
        ("dagster", "asset", "materialize", "-f", "captions.py", "--select=captions", "--partition=2026-11-19"),
    ),
    "Airflow": Scheduler(
        "airflow",
        "2026-11-18",
        ("sh", "-c", "airflow db migrate && airflow dags test captions 2026-11-18"),
        retries=False,  # with this command; a deployment's scheduler does
    ),
}


@pytest.fixture(scope="module")
def nodes(moto_env: dict[str, str]) -> Iterator[Nodes]:
    """A head and a worker that reach a bucket."""
    with Nodes(1, {"RAY_AUTH_MODE": "disabled", **moto_env}) as started:
        yield started


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduled_day_is_one_run_however_often_it_is_tried(
    name: str,
    nodes: Nodes,
    s3_store: fs.S3FileSystem,
    make_job: Callable[[Path], Job],
    expected: Answers,
    tmp_path: Path,
) -> None:
    scheduler = SCHEDULERS[name]
    if find_spec(scheduler.package) is None:
        pytest.skip(f"{scheduler.package} is not installed")
    s3_store.create_dir(BUCKET)
    block, spec = BLOCKS[name], str(make_job(tmp_path).folder / "job.yaml")
    assert block.count("/jobs/job.yaml") == block.count("http://head:8265") == 1
    (tmp_path / "captions.py").write_text(block.replace("/jobs/job.yaml", spec).replace("http://head:8265", nodes.url))
    log = tmp_path / "scheduler.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            scheduler.command, cwd=tmp_path, stdout=stream, stderr=subprocess.STDOUT, env=environment(nodes, tmp_path)
        )
    job_id = f"captions-{scheduler.day}"
    if scheduler.retries:
        wait_until(lambda: num_committed(s3_store, scheduler.day) >= 16, process, log)
        assert nodes.api("POST", f"jobs/{job_id}/stop") == {"stopped": True}
    assert process.wait(600) == 0, log.read_text()
    ended = {info["submission_id"]: info["status"] for info in nodes.api("GET", "jobs/")}
    tries = {job_id: "STOPPED", f"{job_id}-2": "SUCCEEDED"} if scheduler.retries else {job_id: "SUCCEEDED"}
    assert {submission: status for submission, status in ended.items() if str(submission).startswith(job_id)} == tries
    code, text = nodes.call("verify", f"s3://{BUCKET}/{scheduler.day}")
    assert code == 0, text
    assert answers(s3_store, scheduler.day) == expected


def environment(nodes: Nodes, folder: Path) -> dict[str, str]:
    """The cluster's, with the scheduler's own files in a folder."""
    return {
        **nodes.env,
        "PYTHONPATH": f"{folder}:{nodes.env['PYTHONPATH']}",
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DAGSTER_HOME": str(folder),
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "DO_NOT_TRACK": "1",
    }


def parts(store: fs.S3FileSystem, day: str) -> list[str]:
    selector = fs.FileSelector(f"{BUCKET}/{day}", recursive=True, allow_not_found=True)
    return [info.path for info in store.get_file_info(selector) if info.extension == "parquet"]


def num_committed(store: fs.S3FileSystem, day: str) -> int:
    return sum(pq.read_metadata(part, filesystem=store).num_rows for part in parts(store, day))


def answers(store: fs.S3FileSystem, day: str) -> Answers:
    """What is in the bucket; fails if an id comes twice."""
    rows = [row for part in parts(store, day) for row in pq.read_table(part, filesystem=store).to_pylist()]
    found = {
        row["row_id"]: (row["status"], row["generated_text"], row["error"] and row["error"]["code"]) for row in rows
    }
    assert len(found) == len(rows), "a row came out twice"
    return found
