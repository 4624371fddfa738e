"""Each exit code through the real command line, with a message that says what happened and what to do."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from .harness import NUM_ROWS, Answers, Job, call

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
S3_ENV = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Store:
    """An S3 server that can fail and come back; what it holds lives in this process and stays."""

    def __init__(self) -> None:
        self._port = 0
        self.up()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def up(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def down(self) -> None:
        self._server.stop()


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    yield store
    store.down()


@pytest.mark.slow
def test_a_store_that_fails_and_comes_back_then_sigterm_75_then_resume(
    job: Job, tmp_path: Path, store: Store, expected: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**S3_ENV, "AWS_ENDPOINT_URL": store.endpoint}.items():
        monkeypatch.setenv(name, value)
    hook = json.loads(job.env["RAY_JOB_CONFIG_JSON_ENV_VAR"])
    hook["runtime_env"]["env_vars"] |= {**S3_ENV, "AWS_ENDPOINT_URL": store.endpoint}
    job.env["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps(hook)
    bucket = fs.S3FileSystem(endpoint_override=store.endpoint, region="us-east-1", allow_bucket_creation=True)
    bucket.create_dir("answers")
    job.spec["output"]["path"] = "s3://test:topsecret@answers/run"

    def parts() -> list[fs.FileInfo]:
        infos = bucket.get_file_info(fs.FileSelector("answers/run", recursive=True, allow_not_found=True))
        return [info for info in infos if info.extension == "parquet"]

    driver = job.start()
    driver.wait_until(lambda: len(parts()) > 1)
    before = len(parts())
    store.down()
    time.sleep(3)
    store.up()
    driver.wait_until(lambda: len(parts()) > before)
    driver.send(signal.SIGTERM)
    code, text = driver.wait()
    assert (code, "--mode resume" in text) == (75, True), text
    assert "topsecret" not in text
    committed = len(parts())
    code, text = job.run()
    assert (code, "was not completed (cancelled). Finish it with --mode resume" in text) == (2, True), text
    code, text = job.run("--mode", "resume")
    assert code == 0, text
    assert len(parts()) > committed
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    fs.copy_files("answers/run", str(tmp_path / "copy"), source_filesystem=bucket)
    assert not [file for file in (tmp_path / "copy").rglob("_*") if b"topsecret" in file.read_bytes()]
    job.spec["output"]["path"] = str(tmp_path / "copy")
    assert job.answers() == expected
    assert call("verify", "s3://answers/run")[0] == 0
    assert call("verify", str(tmp_path / "copy"))[0] == 0


@pytest.mark.slow
def test_too_many_errors_3_another_job_5_and_retrying_them_0(job: Job, expected: Answers) -> None:
    job.spec["limits"] = {"max_errors": 1}
    code, text = job.run()
    assert (code, "limits.max_errors is 1" in text, "prompt_missing" in text) == (3, True, True), text
    assert not (job.out / "_SUCCESS").exists()
    assert job.manifest()["state"] == "failed"

    job.spec["generation"]["max_new_tokens"] = 9
    code, text = job.run("--mode", "resume")
    assert (code, "generation.max_new_tokens: was 8, is 9" in text) == (5, True), text
    job.spec["generation"]["max_new_tokens"] = 8

    del job.spec["limits"]
    mend_questions(job)
    code, text = job.run("--mode", "resume", "--retry-failed")
    assert code == 0, text
    answers = job.answers()
    assert {name: answer for name, answer in answers.items() if expected[name][0] == "ok"} == {
        name: answer for name, answer in expected.items() if answer[0] == "ok"
    }
    assert all(status == "ok" for status, _, _ in answers.values())
    assert job.num_committed("errors") == 0, "an answer replaces its error"
    assert call("verify", str(job.out))[0] == 0
    table = pq.read_table(job.out / "data")
    again = [row["row_id"] for row in table.to_pylist() if row["attempts"] == 2]
    assert again
    assert all(expected[name][0] == "error" for name in again)


def mend_questions(job: Job) -> None:
    """Gives the rows without a prompt one; the file is another by its time, so that rows are known by their ids."""
    file = Path(job.spec["input"]["path"])
    table = pq.read_table(file)
    questions = [text or "what?" for text in table.column("question").to_pylist()]
    pq.write_table(table.set_column(1, "question", [questions]), file, row_group_size=70)


@pytest.mark.slow
def test_weights_that_do_not_load_are_named_1(job: Job, tiny_folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    (weights,) = model.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    job.spec["model"] = {"path": str(model), "num_crops": 1, "dtype": "float32", "device": "cpu"}
    code, text = job.run()
    assert code == 1, text
    assert "model.safetensors" in text
    assert "Traceback" not in text


@pytest.mark.slow
def test_output_that_cannot_be_written_is_named(job: Job, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    job.spec["output"]["path"] = str(tmp_path / "file" / "out")
    code, text = job.run()
    assert (code, "cannot be written: Not a directory" in text) == (2, True), text


@pytest.mark.slow
def test_a_full_disk_is_named_and_room_lets_it_finish(job: Job, tmp_path: Path, expected: Answers) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs more rights")
    try:
        job.spec["output"]["path"] = str(disk / "out")
        code, text = job.run()
        assert code == 1, text
        assert text.splitlines()[-1].startswith(f"error: {disk}"), text
        assert "cannot be written" in text.splitlines()[-1]
        assert "Make room" in text.splitlines()[-1]
        assert 0 < job.num_committed() < NUM_ROWS
        assert not list(disk.rglob("*.tmp"))
        assert call("verify", str(job.out))[0] == 4
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        code, text = job.run("--mode", "resume")
        assert code == 0, text
        assert job.answers() == expected
        assert call("verify", str(job.out))[0] == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_wrong_commands_2(tmp_path: Path) -> None:
    for arguments in (("verify", str(tmp_path)), ("status", str(tmp_path / "absent"))):
        code, text = call(*arguments)
        assert (code, "no job's output" in text) == (2, True), text
    (tmp_path / "job.yaml").write_text("input: {path: x}\noutput: {path: y}\n")
    code, text = call("run", str(tmp_path / "job.yaml"), "--retry-failed")
    assert (code, "output.retry_failed goes with output.mode resume or append" in text) == (2, True), text
    code, text = call("run", str(tmp_path / "job.yaml"), "--mode", "resme")
    assert (code, "did you mean 'resume'" in text) == (2, True), text
