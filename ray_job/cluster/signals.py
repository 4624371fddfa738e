"""Turns the signals of a scheduler and a person into an orderly end: take on nothing more, commit what is at hand."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ray_job.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOG = logging.getLogger(__name__)


class Stop:
    """Whether the job was asked to end, and how it does.

    Before `arm` a signal raises `Interrupted` at once. After it, the first signal calls `admit_no_more` and leaves the
    job `grace_s` seconds to come to its end by itself; then, or at a second signal, `Interrupted` is raised in the main
    thread. After `ignore` nothing is raised any more. Every way out leaves an output that `--mode resume` goes on with.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._name: str | None = None  # of the first signal
        self._asked = threading.Event()
        self._is_armed = False
        self._is_ignoring = False

    def arm(self, admit_no_more: Callable[[], None]) -> None:
        """Takes the signals from Ray, which sets handlers of its own when it starts.

        Args:
            admit_no_more: called on another thread, since the main one may be anywhere when the signal comes.
        """
        self.take_signals()
        self._is_armed = True

        def wait() -> None:
            self._asked.wait()
            _LOG.warning("%s: finishing the rows at hand, at most %g s; again: at once", self._name, self._grace_s)
            admit_no_more()

        threading.Thread(target=wait, name="stop", daemon=True).start()

    def disarm(self) -> None:
        """From here on a signal raises at once again."""
        self._is_armed = False
        if threading.current_thread() is threading.main_thread():
            signal.setitimer(signal.ITIMER_REAL, 0)

    def ignore(self) -> None:
        """From here on, until the handlers are as they were, a signal changes nothing: all is done."""
        self.disarm()
        self._is_ignoring = True

    def check(self, num_left: int) -> None:
        """To be called when all that was taken on is committed.

        Raises:
            Interrupted: the job was asked to end, and rows are left.
        """
        if self._name is not None and num_left:
            raise self._interrupted(f"{num_left} rows are left")

    def take_signals(self) -> None:
        """Sets the handlers; outside the main thread (a notebook's job in the background) it does nothing."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._on_signal)
            signal.signal(signal.SIGALRM, self._on_deadline)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._is_ignoring:
            return
        is_first, self._name = self._name is None, self._name or signal.Signals(number).name
        if not self._is_armed or not is_first or self._grace_s == 0:
            raise self._interrupted("the rows at hand were given up")
        signal.setitimer(signal.ITIMER_REAL, self._grace_s)
        self._asked.set()

    def _on_deadline(self, number: int, frame: FrameType | None) -> None:
        if self._is_ignoring:
            return
        raise self._interrupted(f"rows at hand were given up after limits.grace_s, {self._grace_s:g} s")

    def _interrupted(self, what: str) -> Interrupted:
        return Interrupted(f"stopped by {self._name}; {what}. What is committed is whole: finish with --mode resume")


@contextmanager
def interruptible(grace_s: float) -> Iterator[Stop]:
    """While open, SIGTERM and SIGINT end the job in order; afterwards the handlers are as they were."""
    stop = Stop(grace_s)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in (*_SIGNALS, signal.SIGALRM)}
    stop.take_signals()
    try:
        yield stop
    except SystemExit as error:  # Ray's own handler, in the moment before ours is back
        raise Interrupted("stopped while starting; what is committed is whole: finish with --mode resume") from error
    finally:
        stop.disarm()
        for number, handler in previous.items():
            signal.signal(number, handler)
