"""What a job changes in its caller's process while it uses Ray, and puts back: environment, loggers, handlers."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ray_job.cluster.signals import restore_handlers, signal_handlers

# Ray Data's own bars, start-up lines and copies of tracebacks would drown the job's lines; what fails is raised.
_LEVELS = {"ray.data": logging.CRITICAL, "ray.data._internal.progress": logging.ERROR}
_WARNINGS_LOCK = threading.RLock()


@contextmanager
def borrowed_process(environment: Mapping[str, str], connect: Callable[[], None]) -> Iterator[None]:
    """Connects to Ray and keeps this process as a job needs it; afterwards it is as it was.

    Args:
        environment: variables to set where the user has not set them.
        connect: may change environment, loggers' levels, signal handlers and warnings filters, as `ray.init` does.
    """
    before = set(os.environ)
    added: dict[str, str] = {}
    levels: dict[str, int] = {}
    try:
        for name, value in environment.items():
            os.environ.setdefault(name, value)
        import ray.data  # reads some of them when it is imported, and sets its loggers' levels

        levels, handlers = _levels(), signal_handlers()
        try:
            with without_warnings(DeprecationWarning):
                connect()
                ray.data.DataContext.get_current()  # warns, when it is made, of fields it sets itself
        finally:
            restore_handlers(handlers)
            added = {name: os.environ[name] for name in set(os.environ) - before}
        for name, level in _LEVELS.items():
            logging.getLogger(name).setLevel(level)
        yield
    finally:
        for name, value in added.items():
            if os.environ.get(name) == value:
                del os.environ[name]
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def without_warnings(*categories: type[Warning]) -> Iterator[None]:
    """Drops warnings of these categories, and puts the filters back. One thread at a time: they are the process's."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        for category in categories:
            warnings.simplefilter("ignore", category)
        yield


def _levels() -> dict[str, int]:
    """Of Ray's loggers, by name."""
    loggers = logging.root.manager.loggerDict.items()
    ours = {name: logger for name, logger in loggers if f"{name}.".startswith("ray.")}
    return {name: logger.level for name, logger in ours.items() if isinstance(logger, logging.Logger)}
