"""What a person sees while a job runs: one live line on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Self, TextIO

from ray_job.output.totals import Totals

_TERMINAL_INTERVAL_S = 0.5
_LOG_INTERVAL_S = 10.0


class Progress:
    """Shows totals until it is closed. The line is drawn by a thread, so that waiting is seen too.

    Args:
        totals: read at each drawing; the caller keeps adding to it.
        stream: where to write; a terminal gets one line rewritten in place.
    """

    def __init__(self, totals: Totals, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._totals = totals
        self._num_rows = 0
        self._first = Totals()  # when counting started
        self._first_s = clock()
        self._stream = stream
        self._clock = clock
        self._started_s = clock()
        self._phase = "starting"
        self._is_terminal = stream.isatty()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._closed.set()
        self._thread.join()
        if self._is_terminal:
            self._stream.write("\r\033[K")
        if kind is None and self._num_rows:
            self._stream.write(self.line() + "\n")
        self._stream.flush()

    def phase(self, name: str) -> None:
        """Says what the job does before its first rows are done."""
        self._phase = name

    def count(self, num_rows: int) -> None:
        """Starts counting: rates are of the rows from now on, progress is towards so many rows in all."""
        self._num_rows, self._first, self._first_s = num_rows, replace(self._totals), self._clock()

    def line(self) -> str:
        """One line: rows, rates, errors, time left."""
        totals, elapsed_s = self._totals, self._clock() - self._started_s
        if totals.parts == self._first.parts:
            rows = f" · {totals.rows}/{self._num_rows} rows" if self._num_rows else ""
            return f"{self._phase}{rows} · {_duration(elapsed_s)}"
        counted_s = max(self._clock() - self._first_s, 1e-9)
        rows_per_s = (totals.rows - self._first.rows) / counted_s
        tokens_per_s = (totals.completion_tokens - self._first.completion_tokens) / counted_s
        left = self._num_rows - totals.rows
        pieces = [
            f"{totals.rows}/{self._num_rows} rows",
            f"{rows_per_s:.1f} rows/s",
            f"{tokens_per_s:.0f} tokens/s",
            f"{totals.failed} errors",
            _duration(elapsed_s),
        ]
        if left > 0 and rows_per_s > 0:
            pieces.append(f"ETA {_duration(left / rows_per_s)}")
        return " · ".join(pieces)

    def _draw(self) -> None:
        interval_s = _TERMINAL_INTERVAL_S if self._is_terminal else _LOG_INTERVAL_S
        while not self._closed.wait(interval_s):
            self._stream.write(f"\r\033[K{self.line()}" if self._is_terminal else self.line() + "\n")
            self._stream.flush()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
