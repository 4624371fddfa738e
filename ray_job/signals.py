"""Turns the signals of a scheduler and a person into one exception, so that a job ends in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ray_job.errors import Interrupted


@contextmanager
def interruptible() -> Iterator[None]:
    """While open, SIGTERM and SIGINT raise `Interrupted` in the main thread.

    Enter it after `ray.init`, which installs handlers of its own. Outside the main thread (a notebook's job in the
    background) signals cannot be handled, and it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(
            f"stopped by {signal.Signals(number).name}; the committed parts are whole. Start again with "
            "`--set output.mode=overwrite`"
        )

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
