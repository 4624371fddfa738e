"""The interface of an engine, and what an engine needs of a tokenizer.

An engine is fed samples and stepped; every sample added comes out exactly once, as a result. Two engines have this
interface: `static.py`, the plain reference, and `continuous.py`, which lets a row in as soon as another is done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ray_job.engine.stats import EngineStats
from ray_job.rows import Result, Sample

Detokenize = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Slots:
    """An engine's places for rows that run together, at one moment."""

    used: int
    total: int


class Engine(Protocol):
    """Turns samples into results, a step at a time."""

    @property
    def has_work(self) -> bool:
        """Whether any sample added has not come out yet."""
        ...

    def add(self, sample: Sample) -> None:
        """Queues a sample. Never fails: what cannot be run comes out as an error result."""
        ...

    def step(self) -> list[Result]:
        """Does one unit of work and returns what finished in it, in any order."""
        ...

    def stats(self) -> EngineStats:
        """What was done so far; adds up over engines."""
        ...

    def slots(self) -> Slots:
        """How full it is; may be asked on any thread."""
        ...


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What an engine must know of a tokenizer."""

    pad_id: int
    stop_ids: Collection[int]
    detokenize: Detokenize


def run(engine: Engine, samples: Iterable[Sample]) -> Iterator[Result]:
    """Feeds an engine and yields results as they finish."""
    for sample in samples:
        engine.add(sample)
    while engine.has_work:
        yield from engine.step()
