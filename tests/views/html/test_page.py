"""What the page says, whatever state the run is in and however large it is."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import unescape
from pathlib import Path

import pytest

from ray_job.cli import main
from ray_job.errors import Interrupted
from ray_job.views.html.facts import NUM_CARDS, collect
from ray_job.views.html.page import render
from ray_job.views.html.write import write_report
from tests.views.html.conftest import Output, failure, png

IDS = [f"row-{number:03}" for number in range(120)]


def fill(output: Output, num_rows: int = 120) -> None:
    output.write_input(
        IDS[:num_rows], [f"Question {n}?" for n in range(num_rows)], [png((n, 90, 90)) for n in range(num_rows)]
    )


def change(position: int) -> dict[str, object]:
    if position % 20 == 0:
        return failure("image_empty", f"no bytes in {position}")
    return failure("storage", "the bucket was away", "read") if position == 5 else {}


def text_of(page: str) -> str:
    """The page without its marks."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", page.split("<main>")[1])))


def test_a_finished_run(output: Output) -> None:
    fill(output)
    output.run(IDS, change)
    facts = collect(str(output.out))
    text = text_of(render(facts))
    assert "Completed" in text
    assert "120 of 120 rows are in 3 parts; 113 answered + 7 failed = 120." in text
    assert [(error.code, error.count) for error in facts.errors] == [("image_empty", 6), ("storage", 1)]
    assert "the bucket was away" in text
    assert f"A sample: {NUM_CARDS} of 120 output rows, from all over the run; 7 failed." in text
    assert len(facts.cards) == NUM_CARDS
    for card in facts.cards:
        number = int(str(card.row_id).removeprefix("row-"))
        assert card.question == f"Question {number}?"
        assert [(thumbnail.width, thumbnail.height) for thumbnail in card.pictures] == [(40, 30)]
        assert card.is_answered == (change(number) == {})
        assert card.answer == (f"answer {number}" if card.is_answered else None)
    assert facts.problems == []


@pytest.mark.parametrize(
    ("error", "said"),
    [(Interrupted("stopped by SIGTERM"), "Stopped before its end"), (RuntimeError("boom"), "Failed.")],
)
def test_a_run_that_ended_early(output: Output, error: Exception, said: str) -> None:
    fill(output)
    output.run(IDS, change, stop_after=60, error=error)
    text = text_of(render(collect(str(output.out))))
    assert said in text
    assert str(error) in text
    assert "60 of 120 rows are in 2 parts" in text
    assert "rows left 60" in text
    assert "Stage times are known once a run has finished." in text


def test_a_running_and_a_dead_run(output: Output) -> None:
    fill(output)
    output.run(IDS, change, stop_after=0)
    manifest = json.loads((output.out / "_manifest.json").read_text())
    assert manifest["state"] == "in_progress"
    text = text_of(render(collect(str(output.out))))
    assert "Dead: its process is gone." in text
    assert "No part has been committed yet." in text
    from ray_job.output.lock import Lock
    from ray_job.storage.places import locate

    lock = Lock.take(locate(str(output.out)))
    try:
        assert "Running." in text_of(render(collect(str(output.out))))
    finally:
        lock.close()


def test_several_runs_lie_side_by_side(output: Output) -> None:
    fill(output)
    output.run(IDS, change, stop_after=60, part_rows=5, error=Interrupted("stopped"))
    output.run(IDS, change, mode="resume", part_rows=5)
    facts = collect(str(output.out))
    assert facts.timeline is not None
    assert [number for _, number in facts.timeline.runs] == [1, 2]
    assert sum(facts.timeline.answered) + sum(facts.timeline.failed) == 120
    assert "60 were done by earlier runs." in text_of(render(facts))


def test_an_input_that_is_gone_costs_only_its_pictures(output: Output) -> None:
    fill(output)
    output.run(IDS, change)
    (output.folder / "rows.parquet").unlink()
    facts = collect(str(output.out))
    assert len(facts.problems) == 1
    assert "no such file or folder" in facts.problems[0]
    assert {card.question for card in facts.cards} == {None}
    assert all(card.pictures == () for card in facts.cards)
    assert facts.problems[0] in text_of(render(facts))


def test_an_input_that_has_changed_gives_no_row_another_rows_picture(output: Output) -> None:
    fill(output)
    output.run(IDS, change)
    moved = [*IDS[:60], *[f"other-{number}" for number in range(60)]]
    output.write_input(moved, ["Another question?"] * 120, [png((1, 2, 3))] * 120)
    facts = collect(str(output.out))
    assert any("has changed" in problem for problem in facts.problems)
    for card in facts.cards:
        is_same = int(str(card.row_id).removeprefix("row-")) < 60
        assert (card.question is not None) == is_same


def test_broken_pictures_and_damaged_parts_do_not_break_the_page(output: Output) -> None:
    ids = IDS[:30]
    output.write_input(
        ids,
        ["What?"] * 30,
        [b"not a picture" if n % 3 == 0 else None if n % 3 == 1 else png((9, 9, 9)) for n in range(30)],
    )
    output.run(ids, part_rows=10)
    first, second, _ = sorted((output.out / "data").iterdir())
    first.write_bytes(first.read_bytes()[:100])
    whole = bytearray(second.read_bytes())
    whole[60:90] = bytes(30)
    second.write_bytes(whole)
    facts = collect(str(output.out))
    assert any(first.name in problem and "damaged" in problem for problem in facts.problems)
    assert any(second.name in problem for problem in facts.problems)
    assert 0 < len(facts.cards) <= 10
    page = render(facts)
    assert "not readable: the picture is null" in page
    assert "not readable: it is text, not a picture: it begins with &#x27;not a picture&#x27;" in page


def test_secrets_are_never_shown(output: Output) -> None:
    fill(output, 3)
    output.run(IDS[:3])
    file = output.out / "_manifest.json"
    manifest = json.loads(file.read_text())
    manifest["spec"]["output"]["path"] = "s3://AKIAKEY:TOPSECRET@bucket/answers?session_token=ALSOSECRET"
    file.write_text(json.dumps(manifest))
    page = render(collect(str(output.out)))
    assert "s3://bucket/answers" in page
    assert not [word for word in ("AKIAKEY", "TOPSECRET", "ALSOSECRET") if word in page]


def test_a_hundred_thousand_rows_make_a_page_of_bounded_size(output: Output) -> None:
    num_rows = 100_000
    ids = [f"row-{number}" for number in range(num_rows)]
    picture, long = png((20, 120, 200), (300, 200)), "word " * 800
    output.write_input(ids, ["What is it?"] * num_rows, [picture] * num_rows)
    output.run(
        ids,
        lambda n: failure("image_empty", long) if n % 50 == 0 else {"generated_text": long} if n % 40 == 1 else {},
        part_rows=2000,
    )
    facts = collect(str(output.out))
    page = render(facts)
    assert facts.totals.answered + facts.totals.failed == num_rows
    assert "A sample: 96 of 100,000 output rows" in text_of(page)
    assert len(facts.cards) == NUM_CARDS
    assert all(card.question == "What is it?" for card in facts.cards)
    numbers = sorted(int(str(card.row_id).removeprefix("row-")) for card in facts.cards)
    assert numbers[0] < 10_000 < 90_000 < numbers[-1]
    assert len(page) < 1_500_000


def test_only_the_pages_own_script_and_style_are_allowed(output: Output) -> None:
    fill(output, 3)
    output.run(IDS[:3])
    page = render(collect(str(output.out)))
    policy = unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])  # type: ignore[index]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for kind, tag in (("script-src", "script"), ("style-src", "style")):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert rules[kind] == f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
    assert rules["default-src"] == "'none'"
    assert not re.findall(r"(?:src|href)=\"(?!data:image/webp;base64,)", page)


def test_the_command_writes_where_it_is_told(
    output: Output, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fill(output, 3)
    output.run(IDS[:3])
    assert main(["report", str(output.out)]) == 0
    assert (output.out / "_report.html").read_text().startswith("<!doctype html>")
    assert capsys.readouterr().out.strip() == str(output.out / "_report.html")
    assert main(["report", str(output.out), "--to", str(tmp_path / "pages" / "one.html")]) == 0
    assert (tmp_path / "pages" / "one.html").exists()
    assert main(["report", str(tmp_path / "pages")]) == 2
    assert "no job's output" in capsys.readouterr().err


def test_the_page_is_replaced_with_the_output(output: Output) -> None:
    fill(output, 3)
    output.run(IDS[:3])
    write_report(str(output.out))
    output.run(IDS[:3], mode="overwrite", stop_after=0)
    assert not (output.out / "_report.html").exists()
