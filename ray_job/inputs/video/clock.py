"""A video's time: whole microseconds from its first frame on, and its stream's own ticks. Nothing is rounded twice."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

US = 1_000_000


@dataclass(frozen=True, slots=True)
class Clock:
    """Of one stream."""

    start: int  # ticks of its first frame
    time_base: Fraction  # seconds of a tick

    def ticks(self, time_us: int) -> int:
        """The last tick that is not after a time."""
        return self.start + time_us * self.time_base.denominator // (self.time_base.numerator * US)

    def time_us(self, ticks: int) -> int:
        """The first microsecond at which a tick has come; `ticks` of it gives the tick again."""
        return -(-(ticks - self.start) * self.time_base.numerator * US // self.time_base.denominator)


def shown_s(time_us: int) -> str:
    """Seconds as they stand in ids and references: `0.0`, `12.5`, `0.033334`."""
    seconds, rest = divmod(time_us, US)
    return f"{seconds}.{f'{rest:06}'.rstrip('0') or '0'}"
