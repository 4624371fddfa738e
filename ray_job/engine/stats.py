"""What an engine did, in numbers that add up across actors, and its limits, which do not."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

LIMITS = ("max_tokens", "token_ceiling")
"""Fields that describe one engine; of several engines the smallest value is reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Counts since the engine was made.

    A step that computes prompt tokens counts as prefill with all its seconds, decodes that ride along included.
    """

    steps: int = 0
    waiting_slots: int = 0  # slots of all steps begun while rows waited …
    waiting_slots_used: int = 0  # … and how many of them held a row
    rows: int = 0  # generated; duplicates not counted
    duplicate_rows: int = 0  # answered with another's answer
    put_back_rows: int = 0  # computed again: out of memory, or new rotary factors
    prompt_tokens: int = 0  # of all rows admitted
    prefix_tokens_reused: int = 0  # of those, not computed because another row's keys were there
    prefill_tokens: int = 0
    prefill_pairs: int = 0  # of a prompt's token and a key it sees where no window hides any and no block shows more
    decode_tokens: int = 0
    forced_tokens: int = 0  # of answers, which their form left no choice about: the model was not asked
    decode_steps: int = 0  # steps that compute nothing else …
    decode_keys: int = 0  # … and the keys of their rows
    pictures_wanted: int = 0  # by rows; those whose prefix was reused want none
    pictures_encoded: int = 0
    crops: int = 0
    keys_read: int = 0  # by decoding rows, a layer
    keys_padded: int = 0  # of those, padding
    vision_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    schedule_s: float = 0.0  # planning, sampling, text
    mask_s: float = 0.0  # finding which tokens forms allow, on a host thread while the model runs …
    mask_wait_s: float = 0.0  # … and waiting for that and putting it on the logits, within prefill_s and decode_s
    memory_failures: int = 0  # steps that ran out of memory
    max_tokens: int = 0  # KV pool, in tokens
    token_ceiling: int = 0  # the part of it that memory was found to allow

    @property
    def slot_occupancy(self) -> float:
        """Share of slots that held a row while others waited; 1.0 if none ever waited."""
        return self.waiting_slots_used / self.waiting_slots if self.waiting_slots else 1.0

    @property
    def padding_share(self) -> float:
        """Share of padding among the keys read. Tokens are never padded."""
        return self.keys_padded / self.keys_read if self.keys_read else 0.0


class Meter:
    """Counts while the engine runs; names are those of `EngineStats`."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._seconds: dict[str, Any] = {}

    def add(self, **counts: int) -> None:
        """Adds to counts by name."""
        self._counts.update(counts)

    def add_seconds(self, name: str, seconds: float) -> None:
        """Adds to seconds by name."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Adds the seconds of its block, whether or not it fails."""
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds(name, time.perf_counter() - started_s)

    def stats(self, **others: Any) -> EngineStats:
        """Everything counted, and `others` beside it."""
        return EngineStats(**self._counts, **self._seconds, **others)


class Stopwatch:
    """Counts a meter's seconds while it runs; in a `with`, it runs from the start and stops at the end."""

    def __init__(self, meter: Meter, name: str) -> None:
        self._meter = meter
        self._name = name
        self._since_s: float | None = None

    def __enter__(self) -> Self:
        self.start(self._name)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self, name: str) -> None:
        """Goes on, for what has this name."""
        self._name, self._since_s = name, time.perf_counter()

    def stop(self) -> None:
        """Adds what it ran for; nothing if it does not run."""
        if self._since_s is not None:
            self._meter.add_seconds(self._name, time.perf_counter() - self._since_s)
            self._since_s = None
