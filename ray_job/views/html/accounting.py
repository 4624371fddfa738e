"""How many rows there are, answered, failed and left: figures, a bar and a sentence."""

from __future__ import annotations

from html import escape

from ray_job.inputs.skipped import Skipped
from ray_job.views.html import plots
from ray_job.views.html.facts import Facts
from ray_job.views.html.units import legend, short_count


def accounting(facts: Facts) -> str:
    """The section."""
    status, totals = facts.status, facts.totals
    num_left = max(0, status.expected_rows - status.rows)
    rate = _rate(facts)
    figures = [
        ("input rows", f"{status.expected_rows:,}", ""),
        ("answered", f"{totals.answered:,}", ""),
        ("failed", f"{totals.failed:,}", ""),
        *([("rows left", f"{num_left:,}", "")] if num_left else []),
        ("throughput", "–" if rate is None else plots.number(rate), "" if rate is None else "rows/s"),
        ("prompt tokens", short_count(totals.prompt_tokens), ""),
        ("answer tokens", short_count(totals.completion_tokens), ""),
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
    key = legend([("ok", "answered"), ("bad", "failed"), *([("left", "not done yet")] if num_left else [])])
    return f'<section><dl class="figures">{items}</dl>{plots.bar(shares)}{key}{_sum(facts, num_left)}</section>'


def _sum(facts: Facts, num_left: int) -> str:
    """The accounting as a sentence."""
    status, totals, manifest = facts.status, facts.totals, facts.manifest
    records = totals.answered + totals.failed
    parts = "1 part" if totals.parts == 1 else f"{totals.parts:,} parts"
    text = f"{status.rows:,} of {status.expected_rows:,} rows are in {parts}"
    if records != status.rows:
        text += f", as {records:,} output rows: one for each question"
    text += f"; {totals.answered:,} answered + {totals.failed:,} failed = {records:,}."
    text += "".join(f" {name.strip().capitalize()}: {value}." for name, value in totals.unparsed_lines())
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
