"""Whole jobs that vLLM answers, through the command line, killed and resumed. Needs vLLM."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_job import JobSpec
from ray_job.demo.run import make_inputs
from ray_job.output.verify import verify
from ray_job.storage.places import locate
from tests.chaos.harness import Answers, Job
from tests.jobs_here import run_here

from . import deadly
from .conftest import POOL_BYTES

pytestmark = [pytest.mark.vllm, pytest.mark.cluster, pytest.mark.timeout(900)]
DEADLY_ROWS = 8, 10  # of one block: each death is another start of vLLM


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM takes up to a minute to start on a busy machine, and these tests start it several times."""
    monkeypatch.setattr("tests.chaos.harness.PATIENCE_S", 800.0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's pictures and questions, some of them broken; two pictures more are deadly to some tests."""
    pytest.importorskip("vllm")
    folder = tmp_path_factory.mktemp("demo") / "inputs"
    make_inputs(folder, 16, seed=0)
    for colour in (deadly.CRASH, deadly.KILL):
        Image.new("RGB", (64, 64), colour).save(folder / "pictures" / f"{colour[0]}.png")
    return folder


def job(inputs: Path, folder: Path, poison: bool = False, **batching: Any) -> Job:
    """The demo's job over vLLM, in small blocks and parts; with `poison` two rows show deadly pictures."""
    table = pq.read_table(inputs / "questions.parquet")
    rows = [row for row in table.to_pylist() if row["images"]]
    if poison:
        for place, colour in zip(DEADLY_ROWS, (deadly.CRASH, deadly.KILL), strict=True):
            rows[place] |= {"images": [f"pictures/{colour[0]}.png"], "broken": None}
    file = inputs / f"rows-{poison}.parquet"
    pq.write_table(type(table).from_pylist(rows, table.schema), file)
    options = {"kv_cache_memory_bytes": POOL_BYTES}
    spec = {
        "input": {"path": str(file), "id_column": "id", "image_columns": "images"},
        "prompt": {"template": "{question}"},
        "generation": {"max_new_tokens": 16},
        "batching": {"engine": "vllm", "engine_options": options, "block_rows": 4, "blocks_per_actor": 2, **batching},
        "workers": {"threads": 1},
        "limits": {"max_images": 2},
        "output": {"path": str(folder / "out"), "part_rows": 4},
    }
    hook = {"worker_process_setup_hook": "tests.models.vllm.deadly.install", "env_vars": {deadly.FOLDER: str(folder)}}
    return Job(folder, spec, {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": hook})})


def expected(asked: Job) -> Answers:
    """What our own engine answers to the same rows."""
    folder = asked.folder / "ours"
    folder.mkdir()
    output = {**asked.spec["output"], "path": str(folder / "out")}
    spec = {**asked.spec, "batching": {"engine": "continuous"}, "output": output}
    run_here(JobSpec.from_dict(spec))
    return Job(folder, spec).answers()


def check(asked: Job) -> None:
    found = verify(locate(str(asked.out)))
    assert found.is_good, found.table()


def vllm_process(asked: Job) -> psutil.Process:
    """The actor's, in which vLLM computes."""
    return psutil.Process(int((asked.folder / "pid").read_text()))


def test_a_killed_driver_and_a_killed_vllm_lose_and_double_nothing(inputs: Path, tmp_path: Path) -> None:
    asked = job(inputs, tmp_path)
    driver = asked.start()
    driver.wait_until(lambda: (tmp_path / "waits").exists() and asked.num_committed() > 0)
    assert driver.is_alive
    actor = vllm_process(asked)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert actor.wait(60) is not None or not actor.is_running()
    before = asked.num_committed()
    (tmp_path / "waits").unlink()
    driver = asked.start("--mode", "resume")
    driver.wait_until(lambda: (tmp_path / "waits").exists())
    (tmp_path / "go").touch()
    vllm_process(asked).kill()
    code, text = driver.wait()
    assert code == 0, text
    answers = asked.answers()
    assert 0 < before < len(answers)
    assert answers == expected(asked)
    check(asked)


def test_pictures_that_kill_vllm_are_found_and_the_rest_is_answered(inputs: Path, tmp_path: Path) -> None:
    asked = job(inputs, tmp_path, poison=True)
    (tmp_path / "go").touch()
    code, text = asked.run()
    assert code == 0, text
    answers, others = asked.answers(), expected(asked)
    ids = [row["id"] for row in pq.read_table(asked.spec["input"]["path"]).to_pylist()]
    for poison in (ids[place] for place in DEADLY_ROWS):
        assert answers.pop(poison) == ("error", None, "worker_killed")
        del others[poison]
    assert answers == others
    check(asked)
