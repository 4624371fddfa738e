"""The Grafana dashboard of a job: `python -m ray_job.metrics.grafana` prints what `grafana.json` holds.

Import the file in Grafana and choose the Prometheus that scrapes Ray.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from ray_job.metrics import catalog
from ray_job.metrics.catalog import Metric

_COLUMNS, _WIDTH, _HEIGHT = 2, 12, 8  # panels in a row; Grafana's grid has 24 columns
_SESSION = "$session"
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Panel:
    """One time series panel: its queries and their legends."""

    title: str
    unit: str  # Grafana's name of it
    queries: dict[str, str]  # legend → PromQL
    description: str = ""
    is_stacked: bool = False


def panels() -> list[Panel]:
    """The dashboard's panels, the most needed first."""
    pictures_reused = f"1 - {_rate(catalog.PICTURES_ENCODED)} / ({_rate(catalog.PICTURES_WANTED)} > 0)"
    prefix_reused = (
        f"{_rate(catalog.PREFIX_TOKENS_REUSED)} / "
        f"(({_rate(catalog.PREFIX_TOKENS_REUSED)} + {_rate(catalog.PREFILL_TOKENS)}) > 0)"
    )
    occupancy = f"{_sum(catalog.RUNNING_ROWS)} / ({_sum(catalog.SLOTS)} > 0)"
    return [
        Panel("Rows", "rowsps", {"{{status}}": _rate(catalog.ROWS, "status")}, is_stacked=True),
        Panel("Errors", "rowsps", {"{{code}}": _rate(catalog.ERRORS, "code")}, is_stacked=True),
        Panel(
            "Tokens of finished rows",
            "short",
            {"prompt": _rate(catalog.PROMPT_TOKENS), "answer": _rate(catalog.COMPLETION_TOKENS)},
            "A second.",
        ),
        Panel(
            "Tokens computed",
            "short",
            {"prefill": _rate(catalog.PREFILL_TOKENS), "decode": _rate(catalog.DECODE_TOKENS)},
            "A second; lower than the rows' own where prefixes and answers are reused.",
        ),
        Panel(
            "Where the time goes",
            "percentunit",
            {"{{stage}}": _rate(catalog.STAGE_SECONDS, "stage")},
            "Seconds of work a second, all actors together. Much idle: preparing is too slow; give it more CPUs.",
            is_stacked=True,
        ),
        Panel("Slots in use", "percentunit", {"in use": occupancy}),
        Panel(
            "Rows in the actors",
            "short",
            {"running": _sum(catalog.RUNNING_ROWS), "waiting": _sum(catalog.QUEUE_ROWS)},
            "Where none wait, slots stay empty.",
        ),
        Panel("Not computed twice", "percentunit", {"pictures": pictures_reused, "prompt tokens": prefix_reused}),
        Panel(
            "Trouble",
            "short",
            {
                "out of memory, steps": _rate(catalog.MEMORY_FAILURES),
                "computed again, rows": _rate(catalog.PUT_BACK_ROWS),
            },
            "A second.",
        ),
        Panel("Duplicate rows", "rowsps", {"answered with another's": _rate(catalog.DUPLICATE_ROWS)}),
    ]


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "uid": "ray-job",
        "title": "ray_job",
        "description": "Batch inference jobs on Ray, from what their actors tell.",
        "tags": ["ray", "ray_job"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource_variable(), _session_variable()]},
        "panels": [_panel(number, panel) for number, panel in enumerate(panels())],
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=2) + "\n"


def _rate(metric: Metric, by: str | None = None) -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({_selected(metric)}[$__rate_interval]))"


def _sum(metric: Metric) -> str:
    return f"sum ({_selected(metric)})"


def _selected(metric: Metric) -> str:
    return f'{metric.exported_name}{{SessionName=~"{_SESSION}"}}'


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, _COLUMNS)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "custom": {
                    "fillOpacity": 25 if panel.is_stacked else 0,
                    "stacking": {"mode": "normal" if panel.is_stacked else "none"},
                },
            },
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": _DATASOURCE, "expr": query, "legendFormat": legend}
            for index, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _datasource_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _session_variable() -> dict[str, Any]:
    """The dashboard's choice of session: each start of a Ray cluster is one."""
    return {
        "name": "session",
        "label": "Ray session",
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": f"label_values({catalog.SLOTS.exported_name}, SessionName)", "refId": "session"},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".+",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


if __name__ == "__main__":
    sys.stdout.write(text())
