"""The interface of an engine, and what an engine needs of a tokenizer.

An engine is fed samples and stepped; every sample added comes out exactly once, as a result. Two engines have this
interface: `static.py`, the plain reference, and `continuous.py`, which lets a row in as soon as another is done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ray_job.engine.stats import EngineStats
from ray_job.rows import Result, Sample
from ray_job.spec import StructuredOutputs

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


class Matcher(Protocol):
    """Follows one answer of a given form, token by token: which tokens may come next."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow: the answer ends here, without asking the model."""
        ...

    def forced_ids(self) -> list[int]:
        """Tokens that come next whatever the model says; they are not taken yet. Empty where there is a choice."""
        ...

    def take(self, token_id: int) -> None:
        """Goes on by a token, the one that ends the answer included. Raises ValueError for one that is not allowed."""
        ...


class Forms(Protocol):
    """Makes matchers for a model's tokenizer. Called on any thread, one at a time for each matcher."""

    @property
    def num_words(self) -> int:
        """W: 32-bit words of a mask over the vocabulary."""
        ...

    def matcher(self, form: StructuredOutputs, max_tokens: int) -> Matcher:
        """Of an answer that has no token yet and may have `max_tokens`.

        Raises:
            RowError: PARAMS_INVALID, what is wrong with the form.
        """
        ...

    def fill_masks(self, matchers: Sequence[Matcher], masks_BW: npt.NDArray[np.int32]) -> None:
        """Sets the bits of the tokens that each matcher allows next, tokens that end an answer included, and clears
        the others: of token t, bit t mod 32 of word t // 32. Raises RuntimeError for a matcher that is broken."""
        ...


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What an engine must know of a tokenizer."""

    pad_id: int
    stop_ids: Collection[int]
    detokenize: Detokenize
    forms: Forms | None = None  # None: every answer is free


def run(engine: Engine, samples: Iterable[Sample]) -> Iterator[Result]:
    """Feeds an engine and yields results as they finish."""
    for sample in samples:
        engine.add(sample)
    while engine.has_work:
        yield from engine.step()
