"""Each exit code through the real command line, with a message that says what happened and what to do."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from .harness import Job, call, make_job

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
S3_ENV = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
Answers = dict[Any, tuple[str, str | None, str | None]]


@pytest.fixture
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


def test_sigterm_ends_with_75_and_resume_finishes_on_an_object_store(
    tiny_folder: Path, tmp_path: Path, endpoint: str, expected: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**S3_ENV, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    store = fs.S3FileSystem(endpoint_override=endpoint, region="us-east-1", allow_bucket_creation=True)
    store.create_dir("answers")
    job = make_job(tmp_path, tiny_folder)
    job.spec["output"]["path"] = "s3://answers/run"

    def parts() -> list[fs.FileInfo]:
        infos = store.get_file_info(fs.FileSelector("answers/run", recursive=True, allow_not_found=True))
        return [info for info in infos if info.extension == "parquet"]

    driver = job.start()
    driver.wait_until(lambda: len(parts()) > 1)
    driver.send(signal.SIGTERM)
    code, text = driver.wait()
    assert (code, "--mode resume" in text) == (75, True), text
    committed = len(parts())
    code, text = job.run()
    assert (code, "did not come to its end (cancelled). Finish it with --mode resume" in text) == (2, True), text
    code, text = job.run("--mode", "resume")
    assert code == 0, text
    assert len(parts()) > committed
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    fs.copy_files("answers/run", str(tmp_path / "copy"), source_filesystem=store)
    job.spec["output"]["path"] = str(tmp_path / "copy")
    assert job.answers() == expected
    assert call("verify", "s3://answers/run")[0] == 0
    assert call("verify", str(tmp_path / "copy"))[0] == 0


def test_too_many_errors_3_another_job_5_and_retrying_them_0(
    tiny_folder: Path, tmp_path: Path, expected: Answers
) -> None:
    job = make_job(tmp_path, tiny_folder)
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
    assert not list(job.out.glob("errors/part-*")), "an answer replaces its error"
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


def test_weights_that_do_not_load_are_named_1(tiny_folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    (weights,) = model.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    job = make_job(tmp_path, model)
    code, text = job.run()
    assert code == 1, text
    assert "model.safetensors" in text
    assert "Traceback" not in text


def test_output_that_cannot_be_written_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    job = make_job(tmp_path, tiny_folder)
    (tmp_path / "file").write_text("not a folder")
    job.spec["output"]["path"] = str(tmp_path / "file" / "out")
    code, text = job.run()
    assert (code, "cannot be written: Not a directory" in text) == (2, True), text

    job.spec["output"]["path"] = str(tmp_path / "full")
    driver = job.start()
    driver.wait_until((tmp_path / "full" / "_manifest.json").exists)
    (tmp_path / "full" / "data").write_text("in the way")
    code, text = driver.wait()
    assert code == 1, text
    assert text.splitlines()[-1].startswith(f"error: {tmp_path / 'full' / 'data'}"), text
    assert "cannot be written" in text.splitlines()[-1]
    assert not list((tmp_path / "full").rglob("*.tmp"))
    (tmp_path / "full" / "data").unlink()
    assert "cannot be written" in call("status", str(tmp_path / "full"))[1]


def test_wrong_commands_2(tmp_path: Path) -> None:
    for arguments in (("verify", str(tmp_path)), ("status", str(tmp_path / "absent"))):
        code, text = call(*arguments)
        assert (code, "no job's output" in text) == (2, True), text
    (tmp_path / "job.yaml").write_text("input: {path: x}\noutput: {path: y}\n")
    code, text = call("run", str(tmp_path / "job.yaml"), "--retry-failed")
    assert (code, "output.retry_failed goes with output.mode resume or append" in text) == (2, True), text
    code, text = call("run", str(tmp_path / "job.yaml"), "--mode", "resme")
    assert (code, "did you mean 'resume'" in text) == (2, True), text
