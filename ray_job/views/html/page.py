"""Facts → one HTML page.

Everything from rows, specs and paths passes `escape`. The policy lets only the page's own style and script be used, and
nothing be fetched, so that even text which came through unescaped could not act.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

import yaml

from ray_job.errors import SpecError
from ray_job.inputs.skipped import Skipped
from ray_job.output.manifest import State, public_spec
from ray_job.output.status import JobStatus
from ray_job.spec import JobSpec
from ray_job.views.gallery.cards import Card, Thumbnail
from ray_job.views.gallery.render import card_facts, card_name, data_uri, shortened, unreadable
from ray_job.views.html import plots
from ray_job.views.html.facts import ErrorClass, Facts, Timeline
from ray_job.views.html.plots import Series

_TEXT_CHARS, _ID_CHARS, _MESSAGE_CHARS, _SPEC_CHARS = 1500, 200, 400, 30_000
_CHART_SIZES = ((1032, 240), (400, 230))  # on a wide and on a narrow screen, pixels
_STAGES = {
    "prepare_s": "prepare: fetch, decode, resize, tokens",
    "vision_s": "vision tower",
    "prefill_s": "prefill: prompts",
    "decode_s": "decode: answers",
    "schedule_s": "schedule: plan, sample, text",
    "write_s": "write parts",
    "idle_s": "engine waiting for rows",
    "load_s": "load the model",
}


def render(facts: Facts) -> str:
    """The page."""
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_sha(style)}'; script-src '{_sha(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    sections = [
        _head(facts),
        _accounting(facts),
        _throughput(facts.timeline),
        _stages(facts),
        _distributions(facts),
        _errors(facts.errors, facts.totals.failed),
        _gallery(facts),
        _spec(facts),
        _foot(facts),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(_name(facts.status.output))} · {escape(facts.status.state)}</title>\n"
        f"<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + f"\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _head(facts: Facts) -> str:
    status, manifest = facts.status, facts.manifest
    kind, text = _state(status)
    lines = [
        f"<h1>{escape(_name(status.output))}</h1>",
        f'<p class="quiet">{escape(status.output)}</p>',
        f'<p class="state {kind}">{escape(text)}</p>',
    ]
    if status.error:
        lines.append(f'<p class="note">{escape(shortened(status.error, _TEXT_CHARS))}</p>')
    started = f"Run {status.run}, started {_date(manifest.started_s)}"
    took = f", {_duration(manifest.elapsed_s)}" if manifest.state not in (State.IN_PROGRESS, State.FINALIZING) else ""
    lines.append(
        f'<p class="quiet">{escape(started + took)}. Fingerprint <code>{escape(status.fingerprint)}</code>.</p>'
    )
    lines += [f'<p class="note">{escape(shortened(problem, _MESSAGE_CHARS))}</p>' for problem in facts.problems[:10]]
    return f"<header>{''.join(lines)}</header>"


def _state(status: JobStatus) -> tuple[str, str]:
    """The state as a CSS class and a sentence."""
    if status.state not in (State.IN_PROGRESS, State.FINALIZING):
        return status.state, {
            State.COMPLETED: "Completed: every row is accounted for.",
            State.FAILED: "Failed. What is committed is whole.",
            State.CANCELLED: "Stopped before its end. What is committed is whole; --mode resume does the rest.",
        }[State(status.state)]
    age = "" if status.newest_part_age_s is None else f" The newest part is {_duration(status.newest_part_age_s)} old."
    if status.is_alive:
        return "running", f"Running.{age}"
    if status.is_alive is None:
        return "running", f"Not finished.{age} On an object store that age is the only sign that it still runs."
    return "dead", f"Dead: its process is gone. What is committed is whole; --mode resume does the rest.{age}"


def _accounting(facts: Facts) -> str:
    status, totals = facts.status, facts.totals
    num_left = max(0, status.expected_rows - status.rows)
    rate = _rate(facts)
    figures = [
        ("input rows", f"{status.expected_rows:,}", ""),
        ("answered", f"{totals.answered:,}", ""),
        ("failed", f"{totals.failed:,}", ""),
        *([("rows left", f"{num_left:,}", "")] if num_left else []),
        ("throughput", "–" if rate is None else plots.number(rate), "" if rate is None else "rows/s"),
        ("prompt tokens", _short(totals.prompt_tokens), ""),
        ("answer tokens", _short(totals.completion_tokens), ""),
    ]
    items = "".join(
        f"<div><dt>{name}</dt><dd>{value}{f' <small>{unit}</small>' if unit else ''}</dd></div>"
        for name, value, unit in figures
    )
    records = totals.answered + totals.failed
    # Rows with several questions have several records; what is left is counted in rows.
    scale = (records / status.rows if status.rows else 1.0) or 1.0
    whole = max(1.0, records + num_left * scale)
    shares = [(totals.answered / whole, "ok"), (totals.failed / whole, "bad"), (num_left * scale / whole, "left")]
    legend = _legend([("ok", "answered"), ("bad", "failed"), *([("left", "not done yet")] if num_left else [])])
    return f'<section><dl class="figures">{items}</dl>{plots.bar(shares)}{legend}{_sum(facts, num_left)}</section>'


def _sum(facts: Facts, num_left: int) -> str:
    """The accounting as a sentence."""
    status, totals, manifest = facts.status, facts.totals, facts.manifest
    records = totals.answered + totals.failed
    parts = "1 part" if totals.parts == 1 else f"{totals.parts:,} parts"
    text = f"{status.rows:,} of {status.expected_rows:,} rows are in {parts}"
    if records != status.rows:
        text += f", as {records:,} output rows: one for each question"
    text += f"; {totals.answered:,} answered + {totals.failed:,} failed = {records:,}."
    if manifest.already_done:
        text += f" {manifest.already_done:,} were done by earlier runs."
    if manifest.duplicates.ids:
        text += f" {manifest.duplicates.ids:,} ids belong to more than one row."
    if manifest.skipped:
        text += f" Skipped in the input: {Skipped.of_dict(manifest.skipped).text()}."
    return f'<p class="quiet">{escape(text)}</p>'


def _rate(facts: Facts) -> float | None:
    """Rows per second over the whole working time where that is known, else over the newest parts."""
    timeline = facts.timeline
    if timeline is None:
        return facts.status.rows_per_s
    return (sum(timeline.answered) + sum(timeline.failed)) / timeline.edges_s[-1]


def _throughput(timeline: Timeline | None) -> str:
    title = "<h2>Throughput over time</h2>"
    if timeline is None:
        return (
            f'<section>{title}<p class="quiet">Nothing to draw yet: it takes parts of different moments.</p></section>'
        )
    edges = timeline.edges_s
    widths = [stop - start for start, stop in itertools.pairwise(edges)]
    series = [
        Series(f"{name}/s", style, [count / width for count, width in zip(counts, widths, strict=True)])
        for name, style, counts in (("answered", "ok", timeline.answered), ("failed", "bad", timeline.failed))
    ]
    marks = [(at_s, f"run {number}") for at_s, number in timeline.runs] if len(timeline.runs) > 1 else []
    charts = [
        plots.columns(
            series,
            edges,
            size=size,
            x_label="working time, h:mm:ss" if edges[-1] >= 3600 else "working time, m:ss",
            y_label="output rows/s",
            tick=_clock,
            ticks=plots.clock_ticks(edges[-1]),
            marks=marks,
            label="Output rows a second over the working time, answered and failed.",
        )
        for size in _CHART_SIZES
    ]
    legend = _legend([("ok", "answered"), ("bad", "failed")]) if any(timeline.failed) else ""
    note = (
        f"Each column is {_duration(widths[0])}. A part counts at the moment it was committed; before the first lie "
        "the start of Ray and the loading of the model."
    )
    if marks:
        note += " The time between runs is left out."
    drawn = f'<div class="on-wide">{charts[0]}</div><div class="on-narrow">{charts[1]}</div>'
    return f'<section>{title}{legend}{drawn}<p class="quiet">{note}</p></section>'


def _stages(facts: Facts) -> str:
    title = "<h2>Where the time went</h2>"
    if not facts.activity:
        note = "Stage times are known once a run has finished."
        return f'<section>{title}<p class="quiet">{note}</p></section>'
    seconds = {name: float(facts.activity.get(name, 0.0)) for name in _STAGES}
    most = max(seconds.values()) or 1.0
    rows = "".join(
        f'<tr><td>{text}</td><td class="n">{_seconds(seconds[name])}</td><td class="share">'
        f"{plots.bar([(seconds[name] / most, 'left' if name in ('idle_s', 'load_s') else 'ok')])}</td></tr>"
        for name, text in _STAGES.items()
    )
    num_actors = int(facts.activity.get("actors", 0))
    actors = "1 actor" if num_actors == 1 else f"{num_actors:,} actors"
    note = f"Seconds of the last run's workers, {actors}, added up: more than the clock's where they ran side by side."
    note += " Grey is time without rows."
    table = f'<table class="stages">{rows}</table>'
    return f'<section>{title}{table}<p class="quiet">{note}</p>{_reuse(facts.activity)}</section>'


def _reuse(done: dict[str, float]) -> str:
    """How much work rows shared, and how full the engine was."""
    parts = []
    if done.get("waiting_slots"):
        share = done.get("waiting_slots_used", 0.0) / done["waiting_slots"]
        parts.append(f"{share:.0%} of the slots were in use while rows waited")
    wanted, encoded = done.get("pictures_wanted", 0.0), done.get("pictures_encoded", 0.0)
    if wanted > encoded:
        parts.append(f"{wanted - encoded:,.0f} of {wanted:,.0f} pictures were not encoded again")
    prompt, reused = done.get("prompt_tokens", 0.0), done.get("prefix_tokens_reused", 0.0)
    if prompt and reused:
        parts.append(f"{reused / prompt:.0%} of the prompt tokens were shared with another row")
    if done.get("duplicate_rows"):
        parts.append(f"rows answered with an equal row's answer: {done['duplicate_rows']:,.0f}")
    if done.get("memory_failures"):
        parts.append(f"steps that ran out of memory: {done['memory_failures']:,.0f}")
    text = "; ".join(parts)
    return f'<p class="quiet">{escape(text[:1].upper() + text[1:])}.</p>' if text else ""


def _distributions(facts: Facts) -> str:
    names = {
        "latency_ms": ("Latency", "ms, from entering the engine to the last token"),
        "prompt_tokens": ("Prompt length", "tokens, pictures included"),
        "completion_tokens": ("Answer length", "tokens"),
    }
    charts = [
        f"<div><h3>{title}</h3>"
        + plots.histogram(
            facts.values[name], size=(330, 190), x_label=unit, y_label="rows", label=f"Histogram: {title}, {unit}."
        )
        + "</div>"
        for name, (title, unit) in names.items()
        if len(facts.values[name])
    ]
    if not charts:
        return ""
    num_read = max(len(values) for values in facts.values.values())
    note = f"Of {num_read:,} answered rows."
    if num_read < facts.num_values_of:
        note = f"Of a sample: {num_read:,} of {facts.num_values_of:,} answered rows, from parts all over the run."
    return (
        f'<section><h2>Latency and length</h2><div class="three">{"".join(charts)}</div>'
        f'<p class="quiet">{note}</p></section>'
    )


def _errors(errors: list[ErrorClass], num_failed: int) -> str:
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


def _gallery(facts: Facts) -> str:
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
    answer = (card.answer or "(empty)") if card.error is None else str(card.error["message"])
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


def _spec(facts: Facts) -> str:
    spec = facts.manifest.spec
    try:
        spec = public_spec(JobSpec.from_dict(spec))  # again without secrets, whoever wrote the manifest
        text = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True, width=100)
    except SpecError as error:
        text = f"The manifest's spec was written by another version and is not shown.\n{error}"
    versions = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(version or 'not installed')}</td></tr>"
        for name, version in facts.manifest.versions.items()
    )
    return (
        "<section><h2>The job</h2><details open><summary>Resolved spec</summary>"
        f"<pre>{escape(shortened(text, _SPEC_CHARS))}</pre></details>"
        f"<details><summary>Versions</summary><table>{versions}</table></details></section>"
    )


def _foot(facts: Facts) -> str:
    return f'<footer class="quiet">As of {_date(facts.made_s)}. Made by ray_job from the output\'s files.</footer>'


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    return f'<ul class="legend">{"".join(f"<li class={style}>{name}</li>" for style, name in entries)}</ul>'


def _name(output: str) -> str:
    """The last folders of a path, enough to tell outputs apart."""
    return "/".join(output.rstrip("/").split("/")[-2:])


def _short(count: int) -> str:
    return f"{count:,}" if count < 1_000_000 else plots.number(count)


def _date(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.3g} h"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds < 100 else f"{seconds:,.0f} s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _asset(name: str) -> str:
    return files("ray_job.views.html").joinpath(name).read_text(encoding="utf-8").strip()


def _sha(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
