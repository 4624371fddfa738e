"""Whatever working on a row raises is that row's error; what is no row's goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_job.errors import ModelError, RowError, SpecError, Stage
from ray_job.inputs.formats.text.openai import parse_request
from ray_job.output.parts import DATA, ERRORS
from ray_job.plan import plan_job
from ray_job.prompts.conversation import Conversations
from ray_job.rows import ERROR_TYPE, error_record
from ray_job.spec import MAX_QUESTIONS, GenerationParams, JobSpec
from ray_job.stages.prepare import Preparer
from ray_job.views.gallery.preview import preview

from ..jobs_here import run_here


class Panic(BaseException):
    """As native code raises it: no Exception."""


def job(tmp_path: Path, columns: Mapping[str, Any], **prompt: Any) -> JobSpec:
    pq.write_table(pa.table(dict(columns)), tmp_path / "rows.parquet")
    return JobSpec.from_dict(
        {
            "input": {
                "path": str(tmp_path / "rows.parquet"),
                "id_column": "id",
                "image_columns": [],
                "keep_columns": [],
            },
            "prompt": prompt,
            "model": {"path": "builtin:noop"},
            "output": {"path": str(tmp_path / "out")},
        }
    )


def broken_at(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Row `bad` raises in the midst of its preparation."""
    of_row = Conversations.of_row

    def raising(self: Conversations, row: Mapping[str, Any], *pictures: Any) -> Any:
        if row["row_id"] == "bad":
            raise error
        return of_row(self, row, *pictures)

    monkeypatch.setattr(Conversations, "of_row", raising)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyError("x"), "internal", "KeyError: 'x'"),
        (RecursionError("too deep"), "internal", "RecursionError: too deep"),
        (Panic("index out of bounds"), "internal", "Panic: index out of bounds"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), "internal", "UnicodeEncodeError"),
        (MemoryError(), "out_of_memory", "no memory for the row"),
    ],
    ids=repr,
)
def test_a_row_never_ends_the_job(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
    code: str,
    message: str,
) -> None:
    ids = ["good", "bad", "also good"]
    spec = job(tmp_path, {"id": ids, "question": ["?"] * 3}, template="{question}")
    broken_at(monkeypatch, error)
    monkeypatch.setattr("ray_job.errors._logged", set())
    with caplog.at_level(logging.ERROR):
        report = run_here(spec)
    assert (report.totals.answered, report.totals.error_codes) == (2, {code: 1})
    (failed,) = pq.read_table(tmp_path / "out" / ERRORS).to_pylist()
    assert (failed["row_id"], failed["error"]["stage"]) == ("bad", "prepare")
    assert message in failed["error"]["message"]
    assert sorted(pq.read_table(tmp_path / "out" / DATA).column("row_id").to_pylist()) == ["also good", "good"]
    if code == "internal":
        assert caplog.text.count("Traceback") == 1, "said once, with its traceback"
        assert "row bad" in caplog.text
    assert plan_job(spec).bad_samples == {code: 1}
    assert [card.is_answered for card in preview(spec, 3).cards] == [True, False, True]
    assert caplog.text.count("others like it are not logged") <= 2, (
        "of one place in the code once, plan's and preview's"
    )


def test_a_line_that_reading_fails_on_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(line: Mapping[str, Any]) -> tuple[str, str]:
        if line["custom_id"] == "bad":
            raise Panic("reading")
        return parse_request(line)

    monkeypatch.setattr("ray_job.inputs.formats.text.jsonl.parse_request", failing)
    messages = [{"role": "user", "content": "?"}]
    lines = [json.dumps({"custom_id": row_id, "messages": messages}) for row_id in ("good", "bad", "also good")]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    report = run_here(
        JobSpec.from_dict(
            {
                "input": {"path": str(tmp_path / "rows.jsonl")},
                "model": {"path": "builtin:noop"},
                "output": {"path": str(tmp_path / "out")},
            }
        )
    )
    assert (report.totals.answered, report.totals.error_codes) == (2, {"internal": 1})
    (failed,) = pq.read_table(tmp_path / "out" / ERRORS).to_pylist()
    assert (failed["error"]["stage"], "Panic: reading" in failed["error"]["message"]) == ("read", True)


def test_a_sample_that_the_actor_cannot_take_is_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = job(tmp_path, {"id": ["good", "bad"], "question": ["?", "?"]}, template="{question}")
    seeded = Preparer._seeded

    def unreadable(self: Preparer, params: GenerationParams, row_id: Any, question_index: int, *more: Any) -> Any:
        params = seeded(self, params, row_id, question_index, *more)
        return params.model_copy(update={"max_new_tokens": -1}) if row_id == "bad" else params

    monkeypatch.setattr(Preparer, "_seeded", unreadable)
    report = run_here(spec)
    assert (report.totals.answered, report.totals.error_codes) == (1, {"internal": 1})
    (failed,) = pq.read_table(tmp_path / "out" / ERRORS).to_pylist()
    assert (failed["row_id"], failed["error"]["stage"]) == ("bad", "generate")


@pytest.mark.parametrize("error", [ModelError("broken"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_what_is_no_rows_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    spec = job(tmp_path, {"id": ["good", "bad"], "question": ["?"] * 2}, template="{question}")
    broken_at(monkeypatch, error)
    with pytest.raises(type(error)):
        run_here(spec)


def test_a_message_that_quotes_a_row_can_be_written_and_is_bounded() -> None:
    class UnshowableError(Exception):
        def __str__(self) -> str:
            raise ValueError

    quoting = RowError.of(ValueError("\ud800" + "x" * 10**6), Stage.GENERATE, object())
    for error in (quoting, RowError.of(UnshowableError(), Stage.READ, None)):
        (written,) = pa.array([error_record(error)], ERROR_TYPE).to_pylist()
        assert 0 < len(written["message"]) < 2100
    long = RowError(quoting.code, "\udfff" + "y" * 10**6)
    assert pa.array([error_record(long)], ERROR_TYPE)[0]["message"].as_py().startswith("\\udfffyyy")


def test_more_questions_than_a_part_can_number_are_the_rows_error(tmp_path: Path) -> None:
    questions = [["?"] * (MAX_QUESTIONS + 1), ["?", "??"]]
    report = run_here(job(tmp_path, {"id": ["many", "two"], "qs": questions}, questions_column="qs"))
    assert (report.totals.rows, report.totals.answered) == (2, 2)
    (failed,) = pq.read_table(tmp_path / "out" / ERRORS).to_pylist()
    assert (failed["row_id"], failed["error"]["code"]) == ("many", "too_many_questions")
    assert failed["error"]["message"].startswith("65537 questions; a row may have 65536")


def test_more_questions_of_the_spec_than_a_part_can_number_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"questions: 65537 of them; allowed: 65536"):
        job(tmp_path, {"id": ["a"]}, questions=["?"] * (MAX_QUESTIONS + 1))
    assert len(job(tmp_path, {"id": ["a"]}, questions=["?"] * MAX_QUESTIONS).prompt.questions or ()) == MAX_QUESTIONS


@pytest.mark.parametrize(
    "prompt", [{"template": "\ud83d"}, {"template": "?", "system": "\udc00"}, {"questions": ["\ud83d"]}]
)
def test_half_a_character_in_the_spec_is_refused_at_once(tmp_path: Path, prompt: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="half of a surrogate pair"):
        job(tmp_path, {"id": ["a"]}, **prompt)


def test_half_a_character_in_a_stop_string_is_refused_at_once() -> None:
    with pytest.raises(SpecError, match=r"stop: .*half of a surrogate pair"):
        JobSpec.from_dict({"input": {"path": "in"}, "output": {"path": "out"}, "generation": {"stop": "\ud83d"}})
