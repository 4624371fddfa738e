"""The Ray a job runs on: one that is there already, or a local one it starts and stops itself."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from ray_job import errors
from ray_job.errors import RayJobError, SpecError, first_line
from ray_job.spec import JobSpec, LimitsSpec
from ray_job.suspects import BLOCKS, describe_marks

_LOG = logging.getLogger(__name__)
_ASK_INTERVAL_S = 0.5
_CONNECT_S = 20.0
_CLOSED = "closed"
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


@dataclass(frozen=True, slots=True)
class Workers:
    """The actor pool, settled against what the cluster has."""

    min_actors: int
    max_actors: int
    gpus_per_actor: float
    cpus_per_actor: float
    dtype: str  # of the model


class Board:
    """Small values that all of a job's processes see and that outlive each of them, in Ray's own store.

    A call costs about a millisecond. Use it in a `with`: it is wiped at the end.
    """

    def __init__(self) -> None:
        self._prefix = f"ray_job/{uuid.uuid4().hex}/"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        from ray.exceptions import RayError
        from ray.experimental import internal_kv

        with suppress(RayError):  # the head may be what died
            if isinstance(error, RayError):
                keys = internal_kv._internal_kv_list(self._prefix + BLOCKS)
                marks = [mark for key in keys if (mark := internal_kv._internal_kv_get(key)) is not None]
                error.add_note(describe_marks(marks))
            internal_kv._internal_kv_del(self._prefix, del_by_prefix=True)

    @property
    def worker(self) -> str:
        """The actor this process serves; the same after a restart."""
        import ray

        return ray.get_runtime_context().get_actor_id() or ""

    def put(self, key: str, value: bytes, overwrite: bool = True) -> bool:
        """Sets a value; whether there was one already, which stays unless it is overwritten."""
        from ray.experimental import internal_kv

        return bool(internal_kv._internal_kv_put(self._prefix + key, value, overwrite))

    def get(self, key: str) -> bytes | None:
        """A value, if there is one."""
        from ray.experimental import internal_kv

        value: bytes | None = internal_kv._internal_kv_get(self._prefix + key)
        return value

    def delete(self, key: str) -> None:
        """Takes a value away, if there is one."""
        from ray.experimental import internal_kv

        internal_kv._internal_kv_del(self._prefix + key)


class Gate:
    """Open until the driver closes it. Workers ask before they take on rows, each process once in half a second."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._is_open = True
        self._asked_s = 0.0

    def close(self) -> None:
        """From within a second on nothing more is taken on."""
        self._board.put(_CLOSED, b"1")

    def is_open(self) -> bool:
        """Whether rows may still be taken on."""
        if self._is_open and time.monotonic() - self._asked_s > _ASK_INTERVAL_S:
            self._is_open = self._board.get(_CLOSED) is None
            self._asked_s = time.monotonic()
        return self._is_open


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
        # An actor's threads share the cores with preparing tasks; spinning for each other they would starve both. GNU's
        # OpenMP may spin for some microseconds. Two quiet cores decode 8 rows in 47 ms so, without spinning in 65 and
        # with its usual spinning in 43; beside a busy process in 88, 76 and 139.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
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


def settle_workers(spec: JobSpec) -> Workers:
    """The pool this cluster can hold, or may grow to hold.

    Raises:
        SpecError: it has not the GPUs or CPUs asked for; without this check Ray would wait for ever.
    """
    import ray

    resources, num_nodes = ray.cluster_resources(), len(ray.nodes())  # type: ignore[no-untyped-call]
    num_cpus, num_gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    # Ray does not tell whether a cluster grows. One of several machines may, and one that can do no work yet must.
    may_grow = bool(os.environ.get("RAY_ADDRESS")) and (num_nodes > 1 or not num_cpus)
    return fit_workers(spec, num_cpus, num_gpus, may_grow)


def fit_workers(spec: JobSpec, num_cpus: float, num_gpus: float, may_grow: bool) -> Workers:
    """See `settle_workers`.

    Args:
        num_cpus: of the cluster, now.
        num_gpus: of the cluster, now.
        may_grow: what is missing may come later; it is waited for, at most `limits.no_progress_s`.

    Raises:
        SpecError: what is missing will not come.
    """
    workers = spec.workers
    gpus = workers.gpus_per_actor
    if gpus == "auto" and may_grow and not num_cpus and not num_gpus and spec.model.device != "cpu":
        raise SpecError(
            ["workers.gpus_per_actor: the cluster has no worker yet, so that `auto` cannot tell; set 1, or 0 for CPUs"]
        )
    if gpus == "auto":
        gpus = 1.0 if num_gpus and spec.model.device != "cpu" else 0.0
    dtype: str = spec.model.dtype
    if dtype == "auto":
        dtype = "bfloat16" if gpus and spec.model.device != "cpu" else "float32"
    max_actors = workers.max_actors or workers.min_actors
    settled = Workers(workers.min_actors, max_actors, gpus, workers.cpus_per_actor, dtype)
    problems = _problems(settled, num_cpus, num_gpus)
    if problems and not may_grow:
        raise SpecError(problems)
    for problem in problems:
        _LOG.warning(
            "%s; waiting for it to grow, at most limits.no_progress_s, %g s", problem, spec.limits.no_progress_s
        )
    return settled


def _problems(settled: Workers, num_cpus: float, num_gpus: float) -> list[str]:
    problems = []
    if settled.min_actors * settled.gpus_per_actor > num_gpus:
        problems.append(
            f"workers.gpus_per_actor: {settled.min_actors} × {settled.gpus_per_actor:g} GPUs are asked for, "
            f"the cluster has {num_gpus:g}; lower workers.min_actors or set workers.gpus_per_actor: 0"
        )
    if settled.max_actors * settled.cpus_per_actor > num_cpus - 1 and settled.cpus_per_actor:
        problems.append(
            f"workers.cpus_per_actor: {settled.max_actors} × {settled.cpus_per_actor:g} CPUs leave none of the "
            f"cluster's {num_cpus:g} to read and prepare rows; lower workers.max_actors or workers.cpus_per_actor"
        )
    return problems


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
    lines = [line for line in text.splitlines() if line.strip()]
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
