"""The dashboard that ships shows the metrics there are."""

from __future__ import annotations

import json
import re
from importlib.resources import files

from ray_job.engine.stats import EngineStats
from ray_job.metrics import catalog, grafana
from ray_job.metrics.publisher import Publisher


def test_the_shipped_dashboard_is_the_one_made_from_the_catalog() -> None:
    shipped = files("ray_job.metrics").joinpath("grafana.json").read_text()
    assert shipped == grafana.text(), "make it again: python -m ray_job.metrics.grafana > ray_job/metrics/grafana.json"


def test_every_metric_is_on_the_dashboard_and_nothing_else() -> None:
    dashboard = grafana.dashboard()
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {name for query in queries for name in re.findall(r"\bray_\w+", query)}
    assert named == {metric.exported_name for metric in catalog.METRICS}
    for query in queries:
        assert query.count("(") == query.count(")")
        assert query.count("{") == query.count("}") == query.count("$session")


def test_panels_lie_beside_each_other() -> None:
    places = [panel["gridPos"] for panel in json.loads(grafana.text())["panels"]]
    cells = {(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])}
    assert len(cells) == sum(place["w"] * place["h"] for place in places)
    assert max(x for x, _ in cells) == 23


def test_counters_of_the_engine_are_counts_it_keeps() -> None:
    assert set(catalog.ENGINE_COUNTERS) <= set(EngineStats.__dataclass_fields__)
    assert set(catalog.ENGINE_COUNTERS.values()) <= set(catalog.METRICS)


def test_without_ray_nothing_is_published() -> None:
    assert Publisher.where_ray_runs(dict, "actor") is None
