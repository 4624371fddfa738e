"""Facts → one HTML page.

Everything from rows, specs and paths passes `escape`. The policy lets only the page's own style and script be used, and
nothing be fetched, so that even text which came through unescaped could not act.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib.resources import files

import yaml

from ray_job.errors import SpecError
from ray_job.output.manifest import State, public_spec
from ray_job.output.status import JobStatus
from ray_job.spec import JobSpec
from ray_job.views.gallery.render import shortened
from ray_job.views.html.accounting import accounting
from ray_job.views.html.facts import Facts
from ray_job.views.html.rows import error_table, gallery
from ray_job.views.html.times import distributions, stages, throughput
from ray_job.views.html.units import date, duration, short_name

_TEXT_CHARS, _MESSAGE_CHARS, _SPEC_CHARS = 1500, 400, 30_000


def render(facts: Facts) -> str:
    """The page."""
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_sha(style)}'; script-src '{_sha(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    sections = [
        _head(facts),
        accounting(facts),
        throughput(facts.timeline),
        stages(facts),
        distributions(facts),
        error_table(facts.errors, facts.totals.failed),
        gallery(facts),
        _spec(facts),
        _foot(facts),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(short_name(facts.status.output))} · {escape(facts.status.state)}</title>\n"
        f"<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + f"\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _head(facts: Facts) -> str:
    status, manifest = facts.status, facts.manifest
    kind, text = _state(status)
    lines = [
        f"<h1>{escape(short_name(status.output))}</h1>",
        f'<p class="quiet">{escape(status.output)}</p>',
        f'<p class="state {kind}">{escape(text)}</p>',
    ]
    if status.error:
        lines.append(f'<p class="note">{escape(shortened(status.error, _TEXT_CHARS))}</p>')
    started = f"Run {status.run}, started {date(manifest.started_s)}"
    took = f", {duration(manifest.elapsed_s)}" if manifest.state not in (State.IN_PROGRESS, State.FINALIZING) else ""
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
    age = "" if status.newest_part_age_s is None else f" The newest part is {duration(status.newest_part_age_s)} old."
    if status.is_alive:
        return "running", f"Running.{age}"
    if status.is_alive is None:
        return "running", f"Not finished.{age} On an object store that age is the only sign that it still runs."
    return "dead", f"Dead: its process is gone. What is committed is whole; --mode resume does the rest.{age}"


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
    return f'<footer class="quiet">As of {date(facts.made_s)}. Made by ray_job from the output\'s files.</footer>'


def _asset(name: str) -> str:
    return files("ray_job.views.html").joinpath(name).read_text(encoding="utf-8").strip()


def _sha(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
