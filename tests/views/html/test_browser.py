"""The page in a real browser: nothing that a row says runs, and the search finds."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ray_job.views.html.write import write_report
from tests.views.html.conftest import Browser, Output, failure, png

PWNED = "document.title='pwned'"
HOSTILE = (
    f"<script>{PWNED}</script>",
    f'<img src=x onerror="{PWNED}">',
    f"</div></main></script></style></title><script>{PWNED}</script>",
    f"\"><svg onload={PWNED}>' onmouseover='{PWNED}",
    f'--><iframe srcdoc="<script>parent.{PWNED}</script>"></iframe>',
    f'<a href="javascript:{PWNED}">x</a><style>*{{display:none}}</style>',
    "<meta http-equiv=refresh content=0;url=about:blank>",
    "&lt;script&gt; stays as it is &amp;#60;",
    "\u202eright to left\u2066 \x00\x07 and <b>bold</b>",
)


class Page(HTMLParser):
    """What a test asks of a document."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.title, self.tags, self.sources, self.answers, self.shown = "", [], [], [], 0
        self._inside: str | None = None
        self._depth = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.tags.append(tag)
        self.sources += [values[name] for name in ("src", "href", "srcdoc") if name in values]
        assert not [name for name in values if name.startswith("on")], values
        if tag == "article":
            self.shown += "hidden" not in values
        if tag == "title" and not self.title:
            self._inside = "title"
        if values.get("class") == "answer":
            self._inside = "answer"
            self.answers.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "title":
            self.title += data
        elif self._inside == "answer":
            self.answers[-1] += data


@pytest.fixture
def hostile(output: Output) -> Path:
    """A page about rows whose ids, questions, answers and errors are all attacks."""
    ids = [f"{text} {number}" for number, text in enumerate(HOSTILE)]
    output.write_input(ids, HOSTILE, [png((200, 40, 40))] * len(ids))

    def change(position: int) -> dict[str, object]:
        if position == 2:
            return failure("image_empty", HOSTILE[position])
        return {"generated_text": HOSTILE[position]}

    output.run(ids, change)
    write_report(str(output.out))
    return output.out / "_report.html"


def test_nothing_a_row_says_is_run(browser: Browser, hostile: Path) -> None:
    page = Page(browser.dom(hostile))
    assert page.title == "test_nothing_a_row_says_is_run0/answers · completed"
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert page.tags.count("meta") == 4
    assert not {"iframe", "a", "b"} & set(page.tags)
    assert len(page.sources) == len(HOSTILE)
    assert all(source.startswith("data:image/webp;base64,") for source in page.sources)
    assert sorted(page.answers) == sorted(text.replace("\x00", "") for text in HOSTILE)


def test_what_came_through_unescaped_would_not_run_either(browser: Browser, hostile: Path, tmp_path: Path) -> None:
    attack = f'<script>{PWNED}</script><img src=x onerror="{PWNED}">'
    naked = tmp_path / "naked.html"
    naked.write_text(f"<title>calm</title>{attack}")
    assert title_of(browser.dom(naked)) == "pwned", "the browser runs no scripts, so these tests show nothing"
    hole = tmp_path / "hole.html"
    hole.write_text(hostile.read_text().replace("<main>", f"<main>{attack}", 1))
    assert title_of(browser.dom(hole)).endswith("· completed")


def test_the_search_finds(browser: Browser, output: Output) -> None:
    ids = [f"row-{number}" for number in range(12)]
    questions = [f"What is on the {'left' if number % 2 else 'right'}?" for number in range(12)]
    output.write_input(ids, questions, [png((0, 20 * number, 90)) for number in range(12)])
    output.run(ids, lambda n: failure("image_missing", "no such file") if n in (3, 8) else {})
    page = write_report(str(output.out)).path
    for fragment, shown in (("", 12), ("#q=LEFT+what", 6), ("#q=left&kind=image_missing", 1)):
        dom = browser.dom(Path(page), fragment)
        assert Page(dom).shown == shown, fragment
        assert f"{shown} of 12 shown" in dom


def title_of(dom: str) -> str:
    match = re.search(r"<title>(.*?)</title>", dom)
    return match[1] if match else ""
