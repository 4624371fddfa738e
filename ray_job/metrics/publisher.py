"""Hands an actor's numbers to Ray once a second, on a thread of its own. Without Ray there is no thread and no cost."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Self

from ray_job.metrics.catalog import METRICS, Kind, Metric

INTERVAL_S = 1.0
ACTOR = "actor"

Readings = Mapping[tuple[Metric, str | None], float]  # metric and its label's value → total so far, or current value


class Publisher:
    """Publishes until it is closed or Ray ends.

    Args:
        read: gives all readings at once; called on the publisher's thread.
        actor: tells the actors of a job apart.
    """

    def __init__(self, read: Callable[[], Readings], actor: str) -> None:
        from ray.util import metrics

        kinds: Mapping[Kind, Any] = {Kind.COUNTER: metrics.Counter, Kind.GAUGE: metrics.Gauge}
        self._read = read
        self._published: dict[tuple[Metric, str | None], float] = {}
        self._metrics: dict[Metric, Any] = {}
        for metric in METRICS:
            labels = (ACTOR,) if metric.label is None else (ACTOR, metric.label)
            self._metrics[metric] = kinds[metric.kind](metric.name, metric.description, tag_keys=labels)
            self._metrics[metric].set_default_tags({ACTOR: actor})
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    @classmethod
    def where_ray_runs(cls, read: Callable[[], Readings], actor: str) -> Self | None:
        """A publisher inside a Ray process, else None."""
        ray = sys.modules.get("ray")
        return cls(read, actor) if ray is not None and ray.is_initialized() else None

    def close(self) -> None:
        """Publishes the last values and ends the thread."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(INTERVAL_S) and sys.modules["ray"].is_initialized():
            self._publish()
        if sys.modules["ray"].is_initialized():
            self._publish()

    def _publish(self) -> None:
        for key, value in self._read().items():
            metric, label = key
            tags = {} if metric.label is None else {metric.label: str(label)}
            if metric.kind == Kind.GAUGE:
                self._metrics[metric].set(value, tags)
                continue
            grown = value - self._published.get(key, 0.0)
            if grown > 0:
                self._metrics[metric].inc(grown, tags)
                self._published[key] = value
