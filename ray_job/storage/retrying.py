"""Retries of transient failures: a bounded number, with a longer wait each time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 10.0
_T = TypeVar("_T")


class Retrying:
    """Calls something until it succeeds, fails for good, or runs out of attempts.

    Args:
        max_attempts: calls in all.
        first_wait_s: before the second attempt; it doubles each time, and a random quarter is taken off or added, so
            that workers which failed together do not come back together.
    """

    def __init__(self, max_attempts: int, first_wait_s: float = _FIRST_WAIT_S) -> None:
        self.num_retries = 0
        self._max_attempts = max_attempts
        self._wait_s = first_wait_s

    def __call__(self, call: Callable[[], _T], is_passing: Callable[[Exception], bool]) -> _T:
        """The call's value.

        Raises:
            Exception: what the call raised last.
        """
        while True:
            try:
                return call()
            except Exception as error:
                if not is_passing(error) or self.num_retries + 1 >= self._max_attempts:
                    raise
            self.num_retries += 1
            time.sleep(self._wait_s * random.uniform(0.75, 1.25))
            self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)
