"""The Ray a job runs on: one that is there already, or a local one it starts and stops itself."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray_job import errors
from ray_job.errors import RayJobError, SpecError, first_line
from ray_job.spec import LimitsSpec

_CONNECT_S = 20.0
_OUR_ERROR = re.compile(r"^ray_job\.errors\.(\w+): (.*(?:\n.+)*)", re.MULTILINE)  # up to an empty line
# What storage says when trying again may help; a task that reads or writes is then tried `limits.max_attempts` times.
_PASSING = (
    "AWS Error NETWORK_CONNECTION",
    "AWS Error SLOW_DOWN",
    "AWS Error SERVICE_UNAVAILABLE",
    "AWS Error INTERNAL_FAILURE",
    "AWS Error REQUEST_TIMEOUT",
    "Connection reset",
    "timed out",
)


@contextmanager
def ray_session(limits: LimitsSpec | None = None) -> Iterator[None]:
    """Joins the Ray that this process already uses, or that RAY_ADDRESS names; else starts one for the job's time.

    Raises:
        SpecError: RAY_ADDRESS is not one a driver can join.
        RayJobError: no Ray answers there, or none starts in time; or what ended the job on a worker, as it was raised
            there and without Ray's layers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray Data's own actor pool makes the core log a scare line for every pool; real failures reach us as exceptions.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # What is tried again is no news, and what fails for good is raised.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "retries remaining")
    import ray
    from ray.exceptions import AuthenticationError

    if ray.is_initialized():
        _configure(limits or LimitsSpec())
        with _true_causes():
            yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_address(address)
    else:
        options |= {"include_dashboard": False, "address": "local"}
        # Nobody can ask for the tasks' events without a dashboard; the driver would gather 0.3 kB of them for each row.
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    try:
        with _silent_stderr():
            ray.init(**options)
    except (ConnectionError, AuthenticationError) as error:
        raise RayJobError(f"RAY_ADDRESS={address}: {_refusal(error)}") from None
    except Exception as error:  # Ray has no class of its own for it
        if "timed out during startup" not in str(error):
            raise
        raise RayJobError(
            "Ray's processes did not start within its 30 s: the machine is too busy, or short of memory. Run the same "
            "command again once it is not"
        ) from None
    _configure(limits or LimitsSpec())
    try:
        with _true_causes():
            yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Refuses at once what a driver cannot join; Ray itself tries for minutes, or hangs with the connection.

    Raises:
        SpecError: it is an address to talk to a cluster from outside.
        RayJobError: nobody listens there.
    """
    if re.match(r"(ray|https?)://", address):
        raise SpecError(
            [
                f"{address}: a job's driver runs inside the cluster. Send it there with `python -m ray_job submit "
                "job.yaml --address http://…:8265`, the dashboard's address"
            ],
            "RAY_ADDRESS",
        )
    host, _, port = address.rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
        except OSError as error:
            raise RayJobError(f"RAY_ADDRESS={address}: {_refusal(ConnectionError(error.strerror or error))}") from None


def _refusal(error: BaseException) -> str:
    if isinstance(error, ConnectionError):
        return f"no Ray answers there ({first_line(error)}); start one, or leave RAY_ADDRESS unset for a local one"
    return f"this Ray wants a token; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH ({first_line(error)})"


@contextmanager
def bounded_restarts(limits: LimitsSpec) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """Options of tasks and of an actor pool whose restarts end; Ray Data's own do not. Ray 2.60 has old names only."""
    from ray.util.annotations import RayDeprecationWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        num = limits.max_restarts
        yield {"max_retries": num}, {"max_restarts": num, "max_task_retries": num}


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drops what Ray's processes write while they start; what goes wrong there is raised as well."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _true_causes() -> Iterator[None]:
    """Ray reports what a worker raised as text inside errors of its own; users get the error itself."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        raise _cause(error) from error
    except Exception as error:
        from ray.data.exceptions import ExecutionTimeoutError

        if isinstance(error, ExecutionTimeoutError):
            raise RayJobError(f"no progress for limits.no_progress_s: {first_line(error)}") from error
        raise


def _cause(error: BaseException) -> RayJobError:
    """The error a worker ended with: one of ours where the text names it, else Ray's with its last line."""
    text = str(error)
    found = _OUR_ERROR.findall(text)
    if found:
        name, message = found[-1]
        kind = getattr(errors, name, RayJobError)
        if kind is not SpecError and isinstance(kind, type) and issubclass(kind, RayJobError):
            return kind(message.strip())
    from ray.exceptions import ActorDiedError, OutOfMemoryError, WorkerCrashedError

    if isinstance(error, ActorDiedError | OutOfMemoryError | WorkerCrashedError):
        who = "an actor's" if isinstance(error, ActorDiedError) else "a preparing task's"
        return RayJobError(
            f"{who} process died more often than limits.max_restarts allows: out of memory, or a crash in native code."
            f"{' '.join(['', *getattr(error, '__notes__', [])])} What is committed is whole: once the cause is gone, "
            "or with a higher limit, finish with --mode resume"
        )
    # Ray ends a worker's error with advice on its own settings.
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("To change retry attempts")]
    return RayJobError(f"a worker failed: {lines[-1].strip() if lines else type(error).__name__}")


def _configure(limits: LimitsSpec) -> None:
    """Bounded retries and a stall guard; Ray Data's own bars and start-up lines would drown the job's."""
    from ray.data import DataContext

    with warnings.catch_warnings():  # it warns of fields it sets itself
        warnings.simplefilter("ignore", DeprecationWarning)
        context = DataContext.get_current()
    context.execution_no_progress_timeout_s = limits.no_progress_s
    context.retried_map_errors = list(_PASSING)
    context.max_map_retries = limits.max_attempts - 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
