"""The rows themselves: what failed, by kind, and a gallery that can be searched."""

from __future__ import annotations

from html import escape

from ray_job.views.gallery.cards import Card, Thumbnail
from ray_job.views.gallery.render import card_answer, card_facts, card_name, data_uri, shortened, unreadable
from ray_job.views.html import plots
from ray_job.views.html.facts import ErrorClass, Facts

_TEXT_CHARS, _ID_CHARS, _MESSAGE_CHARS = 1500, 200, 400


def error_table(errors: list[ErrorClass], num_failed: int) -> str:
    """A table of what failed and why, with examples."""
    title = "<h2>Errors</h2>"
    if not errors:
        return f'<section>{title}<p class="quiet">No row failed.</p></section>'
    most = max(error.count for error in errors) or 1
    head = '<tr><th>code</th><th class="n">rows</th><th class="share"></th><th>stage</th><th>for example</th></tr>'
    rows = "".join(
        f'<tr><td><code>{escape(error.code)}</code></td><td class="n">{error.count:,}</td>'
        f'<td class="share">{plots.bar([(error.count / most, "bad")])}</td>'
        f"<td>{escape(error.stage or '–')}{'<br><span class=quiet>retryable</span>' if error.is_retryable else ''}</td>"
        f"<td><ul>{_examples(error)}</ul></td></tr>"
        for error in errors
    )
    counted = sum(error.count for error in errors)
    note = f'<p class="quiet">{counted - num_failed:,} of them were retried since.</p>' if counted > num_failed else ""
    return f'<section>{title}<div class="scroll"><table>{head}{rows}</table></div>{note}</section>'


def _examples(error: ErrorClass) -> str:
    """Row ids grouped by message, each message once."""
    by_message: dict[str, list[str]] = {}
    for record in error.examples:
        message = shortened(str(record.values["error"]["message"]), _MESSAGE_CHARS)
        by_message.setdefault(message, []).append(shortened(str(record.values["row_id"]), _ID_CHARS))
    return "".join(
        f"<li><bdi>{escape(message)}</bdi><br>"
        + ", ".join(f'<bdi class="id">{escape(row_id)}</bdi>' for row_id in row_ids)
        + "</li>"
        for message, row_ids in by_message.items()
    )


def gallery(facts: Facts) -> str:
    """Cards of rows, and the tools that look through them."""
    title = "<h2>Rows</h2>"
    if not facts.cards:
        return f'<section>{title}<p class="quiet">No part has been committed yet.</p></section>'
    records = facts.totals.answered + facts.totals.failed
    num_failed = sum(not card.is_answered for card in facts.cards)
    if len(facts.cards) < records:
        note = (
            f"A sample: {len(facts.cards):,} of {records:,} output rows, from all over the run; {num_failed:,} failed."
        )
    else:
        note = f"All {records:,} output rows; {num_failed:,} failed."
    note += " The search looks through these only."
    if facts.num_pictures_left_out:
        note += f" {facts.num_pictures_left_out:,} pictures are left out to keep the page small."
    codes = sorted({str(card.error["code"]) for card in facts.cards if card.error is not None})
    choices = [("", "all"), ("answered", "answered"), *([("failed", "failed")] if codes else [])]
    options = "".join(
        f'<option value="{escape(value)}">{escape(name)}</option>'
        for value, name in [*choices, *((c, c) for c in codes)]
    )
    tools = (
        '<div class="tools" hidden><input type="search" placeholder="Search ids, questions, answers, errors" '
        f'aria-label="Search the rows shown"><select aria-label="Which rows">{options}</select>'
        '<output class="quiet"></output></div>'
    )
    cards = "\n".join(_card(card) for card in facts.cards)
    return f'<section>{title}<p class="quiet">{note}</p>{tools}<div class="cards">{cards}</div></section>'


def _card(card: Card) -> str:
    kind = "answered" if card.is_answered else "failed"
    code = "" if card.error is None else f' data-code="{escape(str(card.error["code"]))}"'
    said = "" if card.question is None else f'<div dir="auto">{escape(shortened(card.question, _TEXT_CHARS))}</div>'
    answer = card_answer(card) if card.error is None else str(card.error["message"])
    said += f'<div dir="auto" class="answer">{escape(shortened(answer, _TEXT_CHARS))}</div>'
    name = f'<bdi class="id">{escape(shortened(card_name(card), _ID_CHARS))}</bdi>'
    return (
        f'<article class="card {kind}" data-kind="{kind}"{code}>{_pictures(card)}<div class="said">{said}</div>'
        f'<div class="facts">{name}<br>{escape(card_facts(card))}</div></article>'
    )


def _pictures(card: Card) -> str:
    shown = "".join(_picture(card, picture) for picture in card.pictures)
    if card.num_more_pictures:
        shown += f'<span class="quiet">{"and " if shown else ""}{card.num_more_pictures} more</span>'
    if not shown:
        return ""
    size = "" if len(card.pictures) < 2 else " two" if len(card.pictures) == 2 else " many"
    return f'<div class="pictures{size}">{shown}</div>'


def _picture(card: Card, picture: Thumbnail | str) -> str:
    if isinstance(picture, str):
        return f'<bdi class="quiet">{escape(shortened(unreadable(card, picture), _MESSAGE_CHARS))}</bdi>'
    size = f"{picture.width} × {picture.height}"
    return f'<img src="{data_uri(picture)}" alt="picture, {size} pixels" title="{size} pixels" loading="lazy">'
