"""An engine that answers every sample at once with nothing, to measure the pipeline around it."""

from __future__ import annotations

from ray_job.engine.interface import Slots
from ray_job.engine.stats import EngineStats, Meter
from ray_job.rows import FinishReason, Result, Sample


class NoOpEngine:
    """Every sample ends with an empty answer."""

    def __init__(self) -> None:
        self._waiting: list[Sample] = []
        self._meter = Meter()

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    def add(self, sample: Sample) -> None:
        self._waiting.append(sample)

    def step(self) -> list[Result]:
        samples, self._waiting = self._waiting, []
        self._meter.add(steps=1, rows=len(samples))
        return [
            Result(key=sample.key, text="", finish_reason=FinishReason.STOP, prompt_tokens=len(sample.input_ids))
            for sample in samples
        ]

    def stats(self) -> EngineStats:
        return self._meter.stats()

    def slots(self) -> Slots:
        return Slots(0, 0)
