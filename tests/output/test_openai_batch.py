"""The output as batch services give it: a line for each row, in both files, whatever became of the run before."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from ray_job.errors import RayJobError
from ray_job.output.ledger import Ledger
from ray_job.output.manifest import Manifest
from ray_job.output.openai_batch import BATCH_FILES, write_batch_files
from ray_job.output.verify import verify
from ray_job.storage.places import Location, locate
from ray_job.storage.whole_files import count_lines, write_chunks

from .conftest import record, write
from .quiet_job import QuietJob
from .test_empty_parts import FAILURE

AS_BATCH: dict[str, Any] = {"output": {"format": "openai_batch"}}


@pytest.fixture
def job(tmp_path: Path) -> QuietJob:
    job = QuietJob(tmp_path, AS_BATCH)
    job.write_input(10)
    return job


def third_failed(row: int) -> dict[str, Any]:
    return FAILURE if row % 3 == 0 else {}


def lines(out: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "_openai" / name).read_text().splitlines()]


def custom_ids(out: Path) -> list[str]:
    return [line["custom_id"] for name in ("results.jsonl", "errors.jsonl") for line in lines(out, name)]


def content(job: QuietJob) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (job.out / "_openai").iterdir()}


def test_an_answered_and_a_failed_row_as_services_write_them(job: QuietJob) -> None:
    job.run(change=third_failed)
    results, errors = lines(job.out, "results.jsonl"), lines(job.out, "errors.jsonl")
    assert [line["custom_id"] for line in results] == ["row-1", "row-2", "row-4", "row-5", "row-7", "row-8"]
    assert [line["custom_id"] for line in errors] == ["row-0", "row-3", "row-6", "row-9"]
    line, response = results[0], results[0]["response"]
    body = response["body"]
    assert (line["error"], response["status_code"]) == (None, 200)
    assert body == {
        "id": f"chatcmpl-{response['request_id']}",
        "object": "chat.completion",
        "created": body["created"],
        "model": "builtin:noop",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "answer 1.0", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    assert isinstance(body["created"], int)
    assert errors[0]["error"] == {"code": "storage", "message": "gone"}
    assert errors[0]["response"]["status_code"] == 500, "trying again may help"
    assert errors[0]["response"]["body"] == {
        "error": {"code": "storage", "message": "gone", "type": "server_error", "param": None}
    }
    ids = [line["id"] for line in (*results, *errors)]
    assert len(set(ids)) == 10
    assert all(line["id"] == f"batch_req_{line['response']['request_id']}" for line in results)
    job.verified()


def test_a_row_at_fault_itself_has_a_requests_error(job: QuietJob) -> None:
    error = {**FAILURE["error"], "code": "row_malformed", "retryable": False}
    job.run(change=lambda row: {**FAILURE, "error": error})
    assert lines(job.out, "results.jsonl") == [], "the file is there all the same"
    response = lines(job.out, "errors.jsonl")[0]["response"]
    assert (response["status_code"], response["body"]["error"]["type"]) == (400, "invalid_request_error")


def test_without_the_format_there_are_no_such_files(tmp_path: Path) -> None:
    job = QuietJob(tmp_path)
    job.write_input(2)
    job.run()
    assert not (job.out / "_openai").exists()


def test_several_questions_are_told_apart(root: Location) -> None:
    write(
        root,
        [record(0, question=q, num_questions=2) for q in (0, 1)] + [record(1, num_questions=1)],
        has_questions=True,
    )
    write_batch_files(root, Ledger.scan(root), "f", "m")
    assert custom_ids(Path(root.path)) == ["row-0#0", "row-0#1", "row-1#0"]
    assert (
        lines(Path(root.path), "results.jsonl")[1]["response"]["body"]["choices"][0]["message"]["content"]
        == "answer 0.1"
    )


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([7, 8], pa.int64()), ["7", "8"]),
        (pa.array(["é", 'a"b\n']), ["é", 'a"b\n']),
        (pa.array([datetime.date(2024, 1, 2)] * 2), ["2024-01-02"] * 2),
        (pa.array([b"\xff\x00", b"ok"]), ["ff00", "ok"]),
    ],
)
def test_an_id_of_any_type_is_a_text(tmp_path: Path, ids: pa.Array, expected: list[str]) -> None:
    job = QuietJob(tmp_path, AS_BATCH)
    pq.write_table(pa.table({"id": ids, "question": ["?", "?"]}), job.folder / "rows.parquet")
    values = ids.to_pylist()
    job.run(change=lambda row: {"row_id": values[row]})
    assert custom_ids(job.out) == expected


def test_lines_follow_the_input_and_are_the_same_for_the_same_parts(job: QuietJob) -> None:
    job.run(change=third_failed, part_rows=3)
    before = content(job)
    (job.out / "_SUCCESS").unlink()
    job.run("resume")
    assert content(job) == before
    manifest = Manifest.of_output(job.root)
    write_batch_files(job.root, Ledger.scan(job.root), manifest.fingerprint, "builtin:noop")
    assert content(job) == before


def test_failed_rows_that_are_answered_move_to_the_results(job: QuietJob) -> None:
    job.run(change=third_failed)
    job.run("resume", output={"retry_failed": True, **AS_BATCH["output"]})
    assert sorted(custom_ids(job.out)) == sorted(f"row-{row}" for row in range(10))
    assert lines(job.out, "errors.jsonl") == []
    job.verified()


def test_a_finished_output_gets_them_later_and_loses_old_ones(tmp_path: Path) -> None:
    job = QuietJob(tmp_path)
    job.write_input(4)
    job.run()
    parts = [path.read_bytes() for path in job.parts()]
    _resume(job, AS_BATCH)
    assert custom_ids(job.out) == ["row-0", "row-1", "row-2", "row-3"]
    assert [path.read_bytes() for path in job.parts()] == parts
    job.run("overwrite")
    assert not list((job.out / "_openai").iterdir()), "those of the answers before would lie"


def _resume(job: QuietJob, sections: dict[str, Any]) -> None:
    with job.opened("resume", **sections) as run:
        run.finish()


def test_verify_counts_the_lines(job: QuietJob) -> None:
    job.run(change=third_failed)
    path = job.out / "_openai" / "results.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert "_openai/results.jsonl: has 5 lines, and there are 6 rows" in verify(job.root).table()
    path.unlink()
    assert "_openai/results.jsonl: is missing" in verify(job.root).table()
    _resume(job, {})
    job.verified()


def _broken() -> Iterator[bytes]:
    yield b"half"
    raise RayJobError("no more")


def test_a_file_is_whole_or_not_there(tmp_path: Path, s3_store: fs.S3FileSystem) -> None:
    s3_store.create_dir("batches")
    for root in (locate(str(tmp_path)), locate("s3://batches/out")):
        with pytest.raises(RayJobError, match="no more"):
            write_chunks(root, "_openai/results.jsonl", _broken())
        assert count_lines(root, "_openai/results.jsonl") is None
        write_chunks(root, "_openai/results.jsonl", (b"%d\n" % number for number in range(5000)))
        assert count_lines(root, "_openai/results.jsonl") == 5000
    assert not list((tmp_path / "_openai").glob(".*"))


def test_the_files_of_a_bucket_are_those_of_a_disk(tmp_path: Path, s3_store: fs.S3FileSystem) -> None:
    s3_store.create_dir("batches")
    found = []
    for root in (locate(str(tmp_path / "out")), locate("s3://batches/same")):
        write(root, [record(0), record(1, status="error")])
        write_batch_files(root, Ledger.scan(root), "f", "m")
        for name in BATCH_FILES.values():
            with root.filesystem.open_input_stream(f"{root.path}/{name}") as stream:
                line = json.loads(bytes(stream.read()))
            line["response"]["body"].pop("created", None)  # the parts are of two moments
            found.append(line)
    assert found[:2] == found[2:]
