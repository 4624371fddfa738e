"""Previews by a model that stays, and how rows are shown."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

import ray_job
from ray_job import JobSpec, preview, show
from ray_job.cli import main
from ray_job.cluster.warm_actor import warm_actor
from ray_job.demo.run import make_inputs
from ray_job.errors import SpecError
from ray_job.inputs.opening import open_source
from ray_job.inputs.picking import pick_rows
from ray_job.inputs.remaining import Remaining
from ray_job.inputs.source import iter_tables
from ray_job.models.loading import model_folder
from ray_job.models.threads import restore_threads
from ray_job.rows import output_schema
from ray_job.spec import WorkersSpec
from ray_job.stages.generate import GenerateActor
from ray_job.stages.open_job import open_job
from ray_job.views.gallery.cards import Card
from ray_job.views.gallery.render import cards_html, cards_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The demo's pictures, four of them broken, and its job."""
    folder = tmp_path_factory.mktemp("preview") / "demo"
    make_inputs(folder, 12, seed=4)
    yield folder
    warm_actor().release()


@pytest.fixture
def spec(folder: Path) -> JobSpec:
    return JobSpec.from_yaml(folder / "job.yaml")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models loaded since the test began."""
    loaded: list[str] = []
    load = ray_job.stages.generate.choose_engine

    def counting(spec: JobSpec, *placement: Any) -> Any:
        loaded.append(spec.model.path)
        return load(spec, *placement)

    monkeypatch.setattr("ray_job.stages.generate.choose_engine", counting)
    return loaded


def answers(table: Any) -> list[tuple[Any, ...]]:
    columns = ("row_id", "generated_text", "status", "error", "kind")
    return list(zip(*(table.column(name).to_pylist() for name in columns), strict=True))


def test_a_preview_leaves_its_caller_as_many_threads_as_before(spec: JobSpec) -> None:
    """In a notebook the model lives in the user's own process, until it is released."""
    warm_actor().release()
    with ExitStack() as session:
        restore_threads(session)
        torch.set_num_threads(1)
        spec = spec.model_copy(update={"workers": WorkersSpec(threads=3)})
        preview(spec, 1)
        assert torch.get_num_threads() == 3
        warm_actor().release()
        assert torch.get_num_threads() == 1


def test_a_preview_gives_the_jobs_own_answers_and_writes_nothing(spec: JobSpec, folder: Path) -> None:
    found = preview(spec, 30)
    settled, source, preparer = open_job(spec)
    schema = output_schema(source.id_field.type, source.kept, spec.has_questions)
    (rows,) = iter_tables(source)
    actor = GenerateActor(settled, schema)
    job = actor.generate(preparer(Remaining.all(rows.num_rows).select(rows, 0)), schema)
    actor.close()
    assert answers(found.table) == answers(job)[:30]
    assert found.table.schema == schema
    assert not (folder / "answers").exists()
    for card, row in zip(found.cards, rows.to_pylist(), strict=False):
        assert (card.row_id, card.question) == (row["id"] if "id" in row else row["row_id"], row["question"])
        assert len(card.pictures) == len(row["images"])
    assert {card.is_answered for card in found.cards} == {True, False}
    assert any(isinstance(picture, str) for card in found.cards for picture in card.pictures)


def test_the_model_stays_until_another_is_asked_for(spec: JobSpec, loads: list[str], tmp_path: Path) -> None:
    warm_actor().release()
    preview(spec, 2)
    other = spec.model_dump(mode="json")
    other["prompt"] = {"template": "Look: {question}"}
    other["generation"]["max_new_tokens"] = 3
    other["input"]["keep_columns"] = []
    second = preview(JobSpec.from_dict(other), 3)
    assert loads == ["builtin:demo"]
    assert second.table.num_rows == 3
    assert second.cards[0].question.startswith("Look: ")  # type: ignore[union-attr]
    assert "kind" not in second.table.column_names
    shutil.copytree(model_folder(spec.model), tmp_path / "model")
    other["model"]["path"] = str(tmp_path / "model")
    preview(JobSpec.from_dict(other), 1)
    assert loads == ["builtin:demo", str(tmp_path / "model")]


def test_rows_are_the_first_or_drawn_by_a_seed(spec: JobSpec) -> None:
    source = open_source(spec)
    (rows,) = iter_tables(source)
    ids = rows.column("row_id").to_pylist()
    assert preview(spec, 3).table.column("row_id").to_pylist() == ids[:3]
    drawn = preview(spec, 5, seed=1).table.column("row_id").to_pylist()
    assert drawn == preview(spec, 5, seed=1).table.column("row_id").to_pylist()
    assert drawn != ids[:5]
    assert len(preview(spec, 10_000).cards) == len(ids)
    with pytest.raises(SpecError, match="at least 1"):
        preview(spec, 0)
    assert pick_rows(source, [7, 2, 2, 10_000]).column("row_id").to_pylist() == [ids[2], ids[7]]


def test_a_row_with_several_questions_has_a_card_for_each(spec: JobSpec) -> None:
    data = spec.model_dump(mode="json")
    data["prompt"] = {"questions": ["How many shapes are there?", "What colour?"], "template": "{question}"}
    found = preview(JobSpec.from_dict(data), 4)
    asked = [(card.row_id, card.question_index, card.question) for card in found.cards if card.is_answered]
    assert asked[:2] == [(asked[0][0], 0, "How many shapes are there?"), (asked[0][0], 1, "What colour?")]
    assert "question 2" in repr(found)


def test_the_command_prints_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview", str(folder / "job.yaml"), "-n", "2", "--set", "generation.max_new_tokens=4"]) == 0
    said = capsys.readouterr().out
    assert said.count("asked ") == 2
    assert "2 answered, 0 failed in" in said


def card(**other: Any) -> Card:
    base: dict[str, Any] = {
        "row_id": "row",
        "question_index": None,
        "question": "What?",
        "pictures": (),
        "num_more_pictures": 0,
        "answer": "yes",
        "error": None,
        "finish_reason": "stop",
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "latency_ms": 1234.5,
        "attempts": 1,
    }
    return Card(**{**base, **other})


def test_what_rows_say_is_shown_as_it_is() -> None:
    attack = "<script>alert(1)</script>\" onload='x' &amp;"
    error = {"type": "RowError", "code": "storage", "message": attack, "stage": "read", "retryable": True}
    html = cards_html([card(row_id=attack, question=attack, answer=attack), card(answer=None, error=error)], attack)
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;&quot; onload=&#x27;x&#x27; &amp;amp;") == 5
    text = cards_text([card(answer="one\ntwo\x1b[2J\u202ethree", latency_ms=None)])
    assert "one\n            two�[2J�three" in text
    assert cards_text([]) == "no rows"


def test_an_objects_fields_are_shown_a_line_each() -> None:
    parsed = {"colour": "red <b>", "count": 3, "sizes": [1.5, 2.0], "more": {"a": None}, "note": None}
    found = card(answer='{"colour":"red <b>"}', parsed=parsed)
    lines = ["colour: red <b>", "count: 3", "sizes: 1.5, 2.0", 'more: {"a": null}', "note: null"]
    assert all(line in cards_text([found]) for line in lines)
    assert "colour: red &lt;b&gt;<br>count: 3<br>" in cards_html([found])
    assert "answered  [1]" in cards_text([card(answer="[1]", parsed=[1])]), "what is no object is shown as it is"


def test_show_prints_outside_a_notebook(spec: JobSpec, capsys: pytest.CaptureFixture[str]) -> None:
    found = preview(spec, 3)
    show(found)
    assert capsys.readouterr().out.strip() == repr(found)
    last = found.cards[-1].row_id
    show(found, row_ids=[last])
    assert capsys.readouterr().out.count("asked ") == 1
    with pytest.raises(SpecError, match="no job's output"):
        show("tests")
