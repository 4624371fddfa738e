"""One spec on one process, a local Ray, three nodes and by submission; stopped and resumed through Ray's job API; a
notebook on the same nodes."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from nbclient import NotebookClient

from ray_job.inputs.datasource import RowDatasource
from ray_job.inputs.opening import open_source
from ray_job.spec import JobSpec
from tests.chaos.harness import Job

from .conftest import Answers, answers_here
from .nodes import ROOT, Nodes, wait_until

NUM_ROWS = 5000  # of blocks of 8: they outlast the start of a second command
pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head and two workers, open to anyone on this machine."""
    with Nodes(2, {"RAY_AUTH_MODE": "disabled"}) as started:
        yield started


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
    actors = nodes.api("GET", "v0/actors?limit=1000")["data"]["result"]["result"]
    ours = [actor for actor in actors if actor["class_name"].startswith("MapWorker(MapBatches(Generate")]
    assert len({actor["actor_id"] for actor in ours}) >= 2
    places = {actor["node_id"] for actor in ours} - {None}  # which of the two is Ray's choice
    known = nodes.api("GET", "v0/nodes")["data"]["result"]["result"]
    working = {node["node_id"] for node in known if not node["is_head_node"]}
    assert places, "Ray says where they were"
    assert places <= working, "the head does no work"
    once, by_blocks = pictures_to_encode(job)
    assert once <= job.activity()["pictures_encoded"] <= by_blocks < job.activity()["pictures_wanted"]


def test_a_submitted_job_is_followed_stopped_and_finished_under_one_id(
    nodes: Nodes, make_job: Callable[[Path], Job], tmp_path: Path
) -> None:
    job = make_job(tmp_path)
    table = pa.table({"id": range(NUM_ROWS), "question": ["what?"] * NUM_ROWS})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=500)
    job.spec["input"] = {"path": str(tmp_path / "rows.parquet"), "id_column": "id", "image_columns": []}
    job.spec["model"] = {"path": "builtin:noop"}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job.spec))
    expected = answers_here(job)
    submit = ("submit", str(job.folder / "job.yaml"), "--address", nodes.url, "--job-id", "nightly")
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    first = nodes.start(logs[0], *submit)
    wait_until(lambda: "submitted at" in logs[0].read_text(), first, logs[0])
    second = nodes.start(logs[1], *submit)
    wait_until(lambda: "running already" in logs[1].read_text(), second, logs[1])
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    assert "nightly keeps running" in logs[0].read_text()
    wait_until(lambda: job.num_committed() >= 16, second, logs[1])
    assert nodes.api("POST", "jobs/nightly/stop") == {"stopped": True}
    assert second.wait(120) == 75, logs[1].read_text()
    assert "the same command does the rest" in logs[1].read_text()
    num_done = job.num_committed()
    assert 16 <= num_done < len(expected)
    assert job.manifest()["state"] == "cancelled"

    code, text = nodes.call(*submit, "--set", f"output.path={tmp_path / 'elsewhere'}")
    assert (code, "is the id of another job, with output" in text) == (2, True), text
    code, text = nodes.call(*submit, "--set", "generation.max_new_tokens=9")
    assert (code, "generation.max_new_tokens: was 16, is 9" in text) == (5, True), text
    assert "nightly-2: failed with exit code 5" in text
    code, text = nodes.call(*submit)
    assert (code, "nightly-3: done" in text) == (0, True), text
    assert job.manifest()["already_done"] == num_done
    assert job.answers() == expected
    assert "\r" not in text
    assert f"\n{len(expected)}/{len(expected)} rows" in text, "a plain line tells how far it is"


@pytest.mark.filterwarnings("default")  # of Jupyter's own packages
def test_a_notebook_joins_the_cluster_that_ray_address_names(nodes: Nodes, tmp_path: Path) -> None:
    before = classes_of_actors(nodes)
    own = {"RAY_ADDRESS": nodes.address, "RAY_JOB_FOLDER": str(tmp_path), "RAY_TMPDIR": str(tmp_path / "own")}
    notebook = nbformat.read(ROOT / "notebooks" / "first_look.ipynb", as_version=4)
    NotebookClient(notebook, timeout=400, kernel_name="python3").execute(env={**nodes.env, **own})
    classes = classes_of_actors(nodes) - before
    assert classes["GenerateActor"] == 1, "previews share one actor"
    assert any(name.startswith("MapWorker(MapBatches(Generate") for name in classes), "the job runs there"
    assert not (tmp_path / "own").exists(), "no Ray of its own was started"
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum(output.get("data", {}).get("text/html", "").count("<img") for output in outputs) > 8
    assert (tmp_path / "first-look" / "answers" / "_SUCCESS").exists()


def pictures_to_encode(job: Job) -> tuple[int, int]:
    """How many different good pictures the rows show, and as how many they count where no two blocks share any."""
    source = open_source(JobSpec.from_dict(job.spec))
    rows = [row for read in RowDatasource(source).get_read_tasks(1) for table in read() for row in table.to_pylist()]
    shown = [{image["bytes"] for image in row["image"]} - {b"not a picture"} for row in rows]
    size = job.spec["batching"]["block_rows"]
    blocks = [set().union(*shown[first : first + size]) for first in range(0, len(shown), size)]
    return len(set().union(*shown)), sum(map(len, blocks))


def classes_of_actors(nodes: Nodes) -> Counter[str]:
    """Of all actors there have been."""
    actors = nodes.api("GET", "v0/actors?limit=1000")["data"]["result"]["result"]
    return Counter(actor["class_name"] for actor in actors)
