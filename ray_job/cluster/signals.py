"""Turns a scheduler's or a person's signal into an orderly end: admit no more rows, commit those in flight."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ray_job.errors import Interrupted
from ray_job.redaction.logs import logger_of

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOG = logger_of(__name__)


class Stop:
    """Whether the job was asked to end, and how it ends.

    Before `arm` a signal raises `Interrupted` at once. After it, the first signal calls `admit_no_more` and leaves the
    job `grace_s` seconds to finish by itself; then, or at a second signal, `Interrupted` is raised in the main thread.
    After `ignore` nothing is raised any more. Whichever way it ends, `--mode resume` finishes the output.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._name: str | None = None  # of the first signal
        self._is_armed = False
        self._has_overrun = False  # the grace period
        self._was_asked, self._is_over = threading.Event(), threading.Event()
        self._lock = threading.Lock()  # held while this process signals itself: never after `disarm`
        self._thread: threading.Thread | None = None
        self._is_ignoring = False

    def arm(self, admit_no_more: Callable[[], None]) -> None:
        """Takes the signals back from Ray, which sets handlers of its own when it starts.

        Args:
            admit_no_more: called on another thread, since the main thread may be anywhere when the signal arrives.
        """
        self.take_signals()
        self._is_armed = True
        self._thread = threading.Thread(target=self._end_in_order, args=(admit_no_more,), name="stop", daemon=True)
        self._thread.start()

    def disarm(self) -> None:
        """From here on a signal raises at once again, and no thread is left."""
        self._is_armed = False
        with self._lock:
            self._is_over.set()
        self._was_asked.set()
        if self._thread is not None:
            self._thread.join()

    def ignore(self) -> None:
        """From here on, until the handlers are as they were, a signal changes nothing: all is done."""
        self.disarm()
        self._is_ignoring = True

    def check(self, num_left: int) -> None:
        """To be called when all rows taken on are committed.

        Raises:
            Interrupted: the job was asked to end, and rows are left.
        """
        if self._name is not None and num_left:
            raise self._interrupted(f"{num_left} rows are left")

    def take_signals(self) -> None:
        """Sets the handlers. Python allows that in the main thread only: a job in another thread gets no signals."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._on_signal)

    def _end_in_order(self, admit_no_more: Callable[[], None]) -> None:
        self._was_asked.wait()
        if self._is_over.is_set():
            return
        _LOG.warning("%s: finishing the rows in flight, at most %g s; again: at once", self._name, self._grace_s)
        # On a thread of its own: where the cluster's head has died it may never return.
        threading.Thread(target=admit_no_more, name="admit no more", daemon=True).start()
        if self._is_over.wait(self._grace_s):
            return
        with self._lock:
            main = threading.main_thread().ident
            if not self._is_over.is_set() and main is not None:
                self._has_overrun = True
                signal.pthread_kill(main, signal.SIGTERM)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._is_ignoring:
            return
        is_first, self._name = self._name is None, self._name or signal.Signals(number).name
        if self._has_overrun:
            if not self._is_over.is_set():
                raise self._interrupted(f"rows in flight were given up after limits.grace_s, {self._grace_s:g} s")
        elif not self._is_armed or not is_first or self._grace_s == 0:
            raise self._interrupted("the rows in flight were given up")
        else:
            self._was_asked.set()

    def _interrupted(self, what: str) -> Interrupted:
        return Interrupted(f"stopped by {self._name}; {what}. What is committed is whole: finish with --mode resume")


@contextmanager
def interruptible(grace_s: float) -> Iterator[Stop]:
    """While open, SIGTERM and SIGINT end the job in order; afterwards the handlers are as they were."""
    stop = Stop(grace_s)
    previous = signal_handlers()
    stop.take_signals()
    try:
        yield stop
    except SystemExit as error:  # Ray's own handler, in the moment before ours is back
        raise Interrupted("stopped while starting; what is committed is whole: finish with --mode resume") from error
    finally:
        try:
            stop.disarm()
        finally:
            restore_handlers(previous)


def signal_handlers() -> dict[signal.Signals, Any]:
    """The handlers of the signals that a job, or Ray when it starts, takes."""
    return {number: signal.getsignal(number) for number in _SIGNALS}


def restore_handlers(handlers: Mapping[signal.Signals, Any]) -> None:
    """Sets them again; outside the main thread nothing had changed them."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            if handler is not None:  # None: it was not set from Python
                signal.signal(number, handler)
