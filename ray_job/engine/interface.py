"""What stands on either side of an engine.

An engine is fed samples and stepped; every sample added comes out exactly once, as a result. Two engines share this
seam: the static one (`static.py`, the plain reference) and the continuously batching one. Below it stands a model
that can embed a sample and run a decoder; nothing here knows which.

Shape legend: B rows, L tokens, D hidden size, V vocabulary, T picture tokens, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ray_job.rows import Result, Sample

Detokenize = Callable[[Sequence[int]], str]


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


class Decoder(Protocol):
    """The model under an engine; `models/phi3_vision/model.py` is one."""

    def encode_pictures(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """Pictures, uint8 (H, W, 3) on any device → features (T, D) on the model's; each independent of the others."""
        ...

    def embed_row(self, input_ids_L: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Token ids, −k standing for picture k, and the pictures' features → (L, D)."""
        ...

    def forward(self, inputs_embeds_BLD: Tensor, **kwargs: Any) -> Tensor:
        """Runs the decoder; see the static engine for the arguments."""
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
