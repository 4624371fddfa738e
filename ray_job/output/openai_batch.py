"""The answers once more, as the batch services give them: `output.format: openai_batch`.

_openai/results.jsonl   a line for each answered row
_openai/errors.jsonl    a line for each failed row

Both are made from the committed parts, part after part in the order of the input, and hold the same for the same parts.
A line's `custom_id` is the row's id as text; where rows may have several questions, `id#question_index`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from ray_job.arrow.column_types import filtered
from ray_job.arrow.values import prompt_values, python_rows
from ray_job.errors import RowError
from ray_job.output.compaction import read_part
from ray_job.output.ledger import Ledger, Part
from ray_job.output.parts import DATA, ERRORS
from ray_job.prompts.column_text import text_of
from ray_job.rows import QUESTION_INDEX, ROW_ID
from ray_job.storage.places import Location
from ray_job.storage.whole_files import count_lines, write_chunks

FOLDER = "_openai"
BATCH_FILES = {DATA: f"{FOLDER}/results.jsonl", ERRORS: f"{FOLDER}/errors.jsonl"}
_COLUMNS = ("generated_text", "finish_reason", "usage", "error")


def write_batch_files(root: Location, ledger: Ledger, fingerprint: str, model: str) -> None:
    """Writes both files, each visible whole or not at all; a part is held at once.

    Args:
        root: the output folder.
        ledger: of its parts.
        fingerprint: of the job; ids are made of it and the row's number.
        model: what the lines call the model.

    Raises:
        RayJobError: a part is damaged, or the storage fails.
    """
    for folder, name in BATCH_FILES.items():
        write_chunks(root, name, _chunks(ledger, folder, fingerprint, model))


def batch_lines(root: Location) -> dict[str, int | None]:
    """How many lines each file has, by the folder of its rows; None where it is missing."""
    return {folder: count_lines(root, name) for folder, name in BATCH_FILES.items()}


def _chunks(ledger: Ledger, folder: str, fingerprint: str, model: str) -> Iterator[bytes]:
    """The lines of one part after the other."""
    places = [index for index, part in enumerate(ledger.parts) if part.folder == folder]
    for index in sorted(places, key=lambda place: (ledger.parts[place].account.keys[0], ledger.parts[place].name)):
        part, counts = ledger.parts[index], ledger.counts_of(index)
        lines = _lines(part, pa.array(counts), part.account.keys[counts].tolist(), fingerprint, model)
        yield b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


def _lines(part: Part, counts: pa.Array, keys: list[int], fingerprint: str, model: str) -> Iterator[dict[str, Any]]:
    names = [ROW_ID, *([QUESTION_INDEX] if QUESTION_INDEX in part.schema.names else []), *_COLUMNS]
    table = filtered(read_part(part, names), counts)
    ids = map(_id_text, prompt_values(table.column(ROW_ID)))
    for key, id_text, row in zip(keys, ids, python_rows(table.drop_columns(ROW_ID)), strict=True):
        digest = hashlib.blake2b(f"{fingerprint}/{key}".encode(), digest_size=12).hexdigest()
        question = f"#{row[QUESTION_INDEX]}" if QUESTION_INDEX in row else ""
        answer = _answer(row, digest, int(part.written_s), model) if row["error"] is None else _failure(row["error"])
        status, body, error = answer
        yield {
            "id": f"batch_req_{digest}",
            "custom_id": f"{id_text}{question}",
            "response": {"status_code": status, "request_id": digest, "body": body},
            "error": error,
        }


def _answer(row: dict[str, Any], digest: str, created_s: int, model: str) -> tuple[int, dict[str, Any], None]:
    message = {"role": "assistant", "content": row["generated_text"], "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": row["finish_reason"]}
    usage = {**row["usage"], "total_tokens": sum(row["usage"].values())}
    head = {"id": f"chatcmpl-{digest}", "object": "chat.completion", "created": created_s, "model": model}
    return 200, {**head, "choices": [choice], "usage": usage}, None


def _failure(error: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """What failed for a passing reason is a server's error, the rest the request's own."""
    status, kind = (500, "server_error") if error["retryable"] else (400, "invalid_request_error")
    short = {"code": error["code"], "message": error["message"]}
    return status, {"error": {**short, "type": kind, "param": None}}, short


def _id_text(row_id: Any) -> str:
    try:
        return text_of(row_id)
    except RowError:  # bytes that are no text
        return bytes(row_id).hex()
