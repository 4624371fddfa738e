"""Pictures on the web, in cards and on the page: fetched where `input.allow_hosts` permits, else it is said why not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_job import JobSpec, preview
from ray_job.cluster.warm_actor import warm_actor
from ray_job.views.gallery.cards import Card, Thumbnail
from ray_job.views.gallery.render import cards_html, cards_text
from ray_job.views.html.facts import collect
from ray_job.views.html.page import render
from tests.https import Site, site_of
from tests.views.html.conftest import Output, png

NOT_LISTED = "its host is not on the list input.allow_hosts"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with site_of({"/red.png": png((200, 0, 0)), "/page.png": b"<html>moved</html>"}, tmp_path, monkeypatch) as site:
        yield site


def urls_of(site: Site) -> dict[str, str]:
    """URL → why its picture is not shown, where it is not; `localhost` is on the list."""
    return {
        site.url("/red.png"): "",
        site.url("/red.png", host="127.0.0.1"): NOT_LISTED,
        site.url("/red.png").replace("https", "http"): "is not https",
        site.url("/absent.png"): "status 404",
        site.url("/page.png"): "is an HTML page, not a picture",
    }


def check(cards: list[Card], page: str, reasons: dict[str, str]) -> None:
    """One picture is shown, within the page itself; the others' reasons stand in their places."""
    for card, reason in zip(cards, reasons.values(), strict=True):
        (picture,) = card.pictures
        if reason:
            assert isinstance(picture, str)
            assert reason in picture
            assert reason in unescape(page)
        else:
            assert isinstance(picture, Thumbnail)
            assert (picture.width, picture.height) == (40, 30)
    (source,) = re.findall(r'<img src="([^"]*)"', page)
    assert source.startswith("data:image/webp;base64,")


def test_a_preview_shows_what_the_list_permits(site: Site, tmp_path: Path) -> None:
    reasons = urls_of(site)
    pq.write_table(pa.table({"image": list(reasons)}), tmp_path / "rows.parquet")
    data = {
        "input": {"path": str(tmp_path / "rows.parquet"), "image_columns": "image"},
        "prompt": {"template": "What?"},
        "model": {"path": "builtin:noop"},
        "output": {"path": str(tmp_path / "out")},
    }
    try:
        nothing = preview(JobSpec.from_dict(data), 5)
        assert [card.is_answered for card in nothing.cards] == [False] * 5
        assert "<img" not in cards_html(nothing.cards)
        assert site.asked == []
        data["input"]["allow_hosts"] = [f"localhost:{site.port}"]  # type: ignore[index]
        found = preview(JobSpec.from_dict(data), 5)
    finally:
        warm_actor().release()
    assert set(site.asked) == {"/red.png", "/absent.png", "/page.png"}
    check(list(found.cards), cards_html(found.cards), reasons)
    text = cards_text(found.cards)
    assert all(text.count(reason) == 1 for reason in reasons.values() if reason), "the row's own error says it"
    assert text.count("not readable\n") == 4


def test_the_page_of_a_run_shows_what_its_list_permits(site: Site, tmp_path: Path) -> None:
    reasons = urls_of(site)
    ids = [f"row-{number}" for number in range(len(reasons))]
    output = Output(tmp_path, more_input={"allow_hosts": [f"localhost:{site.port}"]})
    output.write_input(ids, ["What?"] * len(ids), list(reasons))
    output.run(ids)  # all were answered once; the web is not what it was
    facts = collect(str(output.out))
    assert sorted(site.asked) == ["/absent.png", "/page.png", "/red.png"]
    check(facts.cards, render(facts), reasons)
    assert all(f"not readable: {card.pictures[0]}" in cards_text([card]) for card in facts.cards[1:])


def test_without_a_list_the_page_asks_nobody(site: Site, tmp_path: Path) -> None:
    ids = ["row-0"]
    output = Output(tmp_path)
    output.write_input(ids, ["What?"], [site.url("/red.png")])
    output.run(ids)
    page = render(collect(str(output.out)))
    assert site.asked == []
    assert "<img" not in page
    assert "URLs are not fetched unless input.allow_hosts lists their host" in page
