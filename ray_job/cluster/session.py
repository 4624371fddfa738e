"""The Ray that jobs run on: one that is there already, or a local one started for as long as a job needs it."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any

from ray_job.cluster.causes import true_causes
from ray_job.cluster.process_settings import borrowed_process
from ray_job.errors import RayJobError, SpecError, first_line

_CONNECT_S = 20.0
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray Data's own actor pool makes the core log a scare line for every pool; real failures reach us as exceptions.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # What is tried again is no news, and what fails for good is raised.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "retries remaining",
}
_LOCAL_ENVIRONMENT = {
    # Nobody can ask for the tasks' events without a dashboard; the driver would gather 0.3 kB of them for each row.
    "RAY_task_events_report_interval_ms": "0",
}


@contextmanager
def ray_session() -> Iterator[None]:
    """Joins the Ray that this process already uses, or that RAY_ADDRESS names; else starts a local one.

    All jobs and previews of this process share it: the first opens it, the last closes what the first opened.

    Raises:
        SpecError: RAY_ADDRESS is not one a driver can join.
        RayJobError: no Ray answers there, or none starts in time; or what ended the job on a worker, as it was raised
            there and without Ray's layers.
    """
    _SESSION.acquire()
    try:
        with true_causes():
            yield
    finally:
        _SESSION.release()


class _Session:
    """This process's connection to Ray, and how many use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_users = 0
        self._opened = ExitStack()  # what the last user closes

    def acquire(self) -> None:
        """Opens the connection if there is none."""
        with self._lock:
            if not self._num_users or not _is_connected():  # a user may have shut it down since
                self._opened.close()
                with ExitStack() as stack:
                    _open(stack)
                    self._opened = stack.pop_all()
            self._num_users += 1

    def release(self) -> None:
        """Closes it after the last user."""
        with self._lock:
            self._num_users -= 1
            if not self._num_users:
                self._opened.close()


_SESSION = _Session()


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _open(stack: ExitStack) -> None:
    """Joins or starts a Ray, unless this process has one; the stack closes what this opens."""
    if _is_connected():
        stack.enter_context(borrowed_process({}, lambda: None))
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    address, environment = os.environ.get("RAY_ADDRESS"), dict(_ENVIRONMENT)
    if address:
        _check_address(address)
    else:
        options |= {"include_dashboard": False, "address": "local"}
        environment |= _LOCAL_ENVIRONMENT
    stack.enter_context(borrowed_process(environment, lambda: _on_lasting_thread(stack, address, options)))
    import ray

    stack.callback(ray.shutdown)


def _on_lasting_thread(stack: ExitStack, address: str | None, options: dict[str, Any]) -> None:
    """Connects on a thread that outlives the session: Ray's processes end with the thread that started them."""
    if threading.current_thread() is threading.main_thread():
        _connect(address, options)
        return
    connected: Future[None] = Future()
    is_over = threading.Event()

    def keep() -> None:
        try:
            _connect(address, options)
        except BaseException as error:
            connected.set_exception(error)
            return
        connected.set_result(None)
        is_over.wait()

    thread = threading.Thread(target=keep, name="ray session", daemon=True)
    stack.callback(thread.join)
    stack.callback(is_over.set)
    thread.start()
    connected.result()


def _connect(address: str | None, options: dict[str, Any]) -> None:
    import ray
    from ray.exceptions import AuthenticationError

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


def _check_address(address: str) -> None:
    """Refuses at once what a driver cannot join; Ray itself tries for minutes, or hangs with the connection.

    Raises:
        SpecError: it is an address for clients outside the cluster.
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
