"""Cards as HTML, or as text for a terminal. Whatever a row says is escaped: it is data, never markup."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from ray_job.prompts.column_text import text_of
from ray_job.views.gallery.cards import Card, Thumbnail

_MAX_CHARS = 2000
_QUIET = "opacity:.65;font-size:.85em"
_CARD = (
    "width:15em;padding:.8em;border:1px solid rgba(128,128,128,.35);border-radius:6px;"
    "text-align:left;overflow-wrap:anywhere;unicode-bidi:isolate"
)
_PICTURE = "max-width:100%;max-height:11em;margin:0 .3em .5em 0;vertical-align:top;image-rendering:auto"


def cards_html(cards: Sequence[Card], footer: str = "") -> str:
    """An HTML fragment with its styles inside, for light and dark pages."""
    foot = f'<div style="{_QUIET};margin-top:.6em">{escape(footer)}</div>' if footer else ""
    inside = "".join(_card_html(card) for card in cards) or "no rows"
    return f'<div style="display:flex;flex-wrap:wrap;gap:.8em;align-items:stretch">{inside}</div>{foot}'


def cards_text(cards: Sequence[Card], footer: str = "") -> str:
    """The same for a terminal; pictures by their size."""
    return "\n\n".join([*map(_card_text, cards), *([footer] if footer else [])]) or "no rows"


def card_name(card: Card) -> str:
    """The row's id, and which of its questions."""
    return f"{card.row_id}" if card.question_index is None else f"{card.row_id} · question {card.question_index + 1}"


def card_answer(card: Card) -> str:
    """What was answered: an object's fields a line each, else the text."""
    if isinstance(card.parsed, dict):
        return "\n".join(f"{name}: {text_of(value)}" for name, value in card.parsed.items())
    return card.answer or "(empty)"


def card_facts(card: Card) -> str:
    """How an answer ended, its tokens and how long it took; of a failed row, its code."""
    if card.error is not None:
        facts = [str(card.error["code"]), f"stage {card.error['stage']}"]
    else:
        facts = [str(card.finish_reason), f"{card.prompt_tokens} + {card.completion_tokens} tokens"]
        facts += [] if card.latency_ms is None else [f"{card.latency_ms:,.0f} ms"]
    return " · ".join([*facts, *([f"{card.attempts} attempts"] if card.attempts > 1 else [])])


def unreadable(card: Card, why: str) -> str:
    """The text in place of a picture that cannot be shown; what the row's error says already is not repeated."""
    is_said = card.error is not None and why in str(card.error["message"])
    return "not readable" if is_said else f"not readable: {why}"


def data_uri(thumbnail: Thumbnail) -> str:
    """The thumbnail as a `data:` URI."""
    return "data:image/webp;base64," + base64.b64encode(thumbnail.data).decode()


def shortened(text: str, max_chars: int = _MAX_CHARS) -> str:
    """The text, cut with a note where it is too long to show."""
    return text if len(text) <= max_chars else f"{text[:max_chars]} … ({len(text):,} characters)"


def _card_html(card: Card) -> str:
    pictures = "".join(_picture_html(card, picture) for picture in card.pictures)
    if card.num_more_pictures:
        pictures += f'<span style="{_QUIET}">and {card.num_more_pictures} more</span>'
    question = "" if card.question is None else f"<div>{_text_html(card.question)}</div>"
    if card.error is not None:
        answer = f'<div style="color:#c4432b;margin-top:.3em">{_text_html(str(card.error["message"]))}</div>'
    else:
        answer = f'<div style="font-weight:600;margin-top:.3em">{_text_html(card_answer(card))}</div>'
    name, facts = escape(shortened(card_name(card), 200)), escape(card_facts(card))
    foot = f'<div style="{_QUIET};margin-top:.5em">{name}<br>{facts}</div>'
    return f'<div dir="auto" style="{_CARD}">{pictures}{question}{answer}{foot}</div>'


def _picture_html(card: Card, picture: Thumbnail | str) -> str:
    if isinstance(picture, str):
        return f'<div style="{_QUIET};margin-bottom:.5em">{_text_html(unreadable(card, picture))}</div>'
    size = f"{picture.width} × {picture.height}"
    return f'<img src="{data_uri(picture)}" alt="picture, {size}" title="{size}" style="{_PICTURE}">'


def _text_html(text: str) -> str:
    return escape(shortened(text)).replace("\n", "<br>")


def _card_text(card: Card) -> str:
    sizes = [unreadable(card, p) if isinstance(p, str) else f"{p.width} × {p.height}" for p in card.pictures]
    sizes += [f"{card.num_more_pictures} more"] if card.num_more_pictures else []
    lines = [
        ("pictures" if len(sizes) > 1 else "picture", ", ".join(sizes)),
        ("asked", card.question),
        ("failed", str(card.error["message"])) if card.error is not None else ("answered", card_answer(card)),
        ("", card_facts(card)),
    ]
    indented = [f"  {name:<9} {_plain(text)}" for name, text in lines if text]
    return "\n".join([_plain(card_name(card)), *indented])


def _plain(text: str) -> str:
    """Without characters that move a terminal's cursor or change the reading direction; later lines are indented."""
    lines = shortened(text).splitlines() or [""]
    return "\n            ".join("".join(c if c.isprintable() else "�" for c in line) for line in lines)
