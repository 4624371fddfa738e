"""What the time went into: rows a second, the stages of the workers, how long answers took."""

from __future__ import annotations

import itertools
from html import escape

from ray_job.views.html import plots
from ray_job.views.html.facts import Facts, Timeline
from ray_job.views.html.plots import Series
from ray_job.views.html.units import clock, duration, legend, short_seconds

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


def throughput(timeline: Timeline | None) -> str:
    """Answered and failed rows over the working time."""
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
            tick=clock,
            ticks=plots.clock_ticks(edges[-1]),
            marks=marks,
            label="Output rows a second over the working time, answered and failed.",
        )
        for size in _CHART_SIZES
    ]
    key = legend([("ok", "answered"), ("bad", "failed")]) if any(timeline.failed) else ""
    note = (
        f"Each column is {duration(widths[0])}. A part counts at the moment it was committed; before the first lie "
        "the start of Ray and the loading of the model."
    )
    if marks:
        note += " The time between runs is left out."
    drawn = f'<div class="on-wide">{charts[0]}</div><div class="on-narrow">{charts[1]}</div>'
    return f'<section>{title}{key}{drawn}<p class="quiet">{note}</p></section>'


def stages(facts: Facts) -> str:
    """The seconds of each stage, and what rows shared."""
    title = "<h2>Where the time went</h2>"
    if not facts.activity:
        note = "Stage times are known once a run has finished."
        return f'<section>{title}<p class="quiet">{note}</p></section>'
    seconds = {name: float(facts.activity.get(name, 0.0)) for name in _STAGES}
    most = max(seconds.values()) or 1.0
    rows = "".join(
        f'<tr><td>{text}</td><td class="n">{short_seconds(seconds[name])}</td><td class="share">'
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


def distributions(facts: Facts) -> str:
    """Histograms of latency and lengths; nothing where no row is answered."""
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
