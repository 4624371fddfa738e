"""What really ended a job: the error that was raised on a worker, without the layers and advice Ray wraps it in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import dropwhile

from ray_job import errors
from ray_job.errors import ClusterLost, RayJobError, SpecError, first_line

RESUME = "What is committed is whole: finish with --mode resume"
_MAX_CHARS = 2000
_FRAME = re.compile(r'^ +File ".*", line \d+|^  \[Previous line repeated')
_RAISED = re.compile(r"^([\w.<>]+)(?:: ?(.*))?$")  # `package.Name: message` or `Name` alone
_CHAINED = re.compile(
    r"^\n?(The above exception was the direct cause of|During handling of the above exception, another)", re.MULTILINE
)
# What Ray Data adds to the message of an error that it has tried again.
_RETRIED = re.compile(r"\n?Failed to [^\n]* after \d+/\d+ attempts \(total backoff .*", re.DOTALL)


@contextmanager
def true_causes() -> Iterator[None]:
    """Raises what a worker raised instead of Ray's errors about it."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        raise cause_of(error) from error
    except Exception as error:
        from ray.data.exceptions import ExecutionTimeoutError

        if isinstance(error, ExecutionTimeoutError):
            raise RayJobError(f"no progress for limits.no_progress_s: {first_line(error)}") from error
        raise


def cause_of(error: BaseException) -> RayJobError:
    """The error a worker ended with: itself where it is one of this package's, else its type and message."""
    from ray.exceptions import ActorDiedError, LocalRayletDiedError, OutOfMemoryError, RayError, WorkerCrashedError

    raised = _raised(error)
    if isinstance(raised, RayJobError):
        return raised
    if not isinstance(raised, RayError):
        return _failed(type(raised).__qualname__, _message(raised))
    if isinstance(raised, LocalRayletDiedError):
        return ClusterLost(f"the raylet that this driver is connected to died. {RESUME}")
    found = _from_traceback(str(raised))
    if found is not None:
        return found
    if isinstance(raised, ActorDiedError | OutOfMemoryError | WorkerCrashedError):
        who = "an actor's" if isinstance(raised, ActorDiedError) else "a preparing task's"
        return RayJobError(
            f"{who} process died more often than limits.max_restarts allows: out of memory, or a crash in native code."
            f"{' '.join(['', *getattr(error, '__notes__', [])])} What is committed is whole: once the cause is gone, "
            "or with a higher limit, finish with --mode resume"
        )
    return _failed(type(raised).__name__, str(raised))


def _raised(error: BaseException) -> BaseException:
    """The innermost error that Ray still has as an object, with its own message."""
    from ray.exceptions import RayTaskError

    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        text, error = str(error), error.cause
        if isinstance(error, OSError) and _RETRIED.search(str(error)):  # Ray's words took the place of the file's name
            return _from_traceback(text) or error
    _clean(error)
    return error


def _clean(error: BaseException) -> None:
    """Takes out of an error's arguments what Ray Data has added to the first or behind the last."""
    args = error.args
    if args and isinstance(args[-1], str) and _RETRIED.fullmatch(args[-1]):
        args = args[:-1]
    elif args and isinstance(args[0], str):
        args = (_RETRIED.sub("", args[0]), *args[1:])
    with suppress(Exception):  # some classes forbid it; what is shown is cut once more
        error.args = args


def _from_traceback(text: str) -> RayJobError | None:
    """The last error of a printed chain that is not Ray's own; None where the text is no traceback."""
    found = None
    for block in _CHAINED.split(text)[::2]:
        lines = block.splitlines()
        frames = [number for number, line in enumerate(lines) if _FRAME.match(line)]
        if not frames:
            continue
        said = list(dropwhile(lambda line: line.startswith("    "), lines[frames[-1] + 1 :]))
        match = _RAISED.match(said[0]) if said else None
        if match is not None and not match[1].startswith("ray.exceptions."):
            found = match[1], "\n".join([match[2] or "", *said[1:]])
    return None if found is None else _rebuilt(*found)


def _rebuilt(name: str, message: str) -> RayJobError:
    """An error of this package from its printed form; another's type and message."""
    module, _, kind_name = name.rpartition(".")
    kind = getattr(errors, kind_name, None) if module == errors.__name__ else None
    if isinstance(kind, type) and issubclass(kind, RayJobError) and kind is not SpecError:
        return kind(_RETRIED.sub("", message).strip())
    return _failed(kind_name, message)


def _failed(name: str, message: str) -> RayJobError:
    message = _RETRIED.sub("", message).strip()
    shown = f"{message[:_MAX_CHARS]} …" if len(message) > _MAX_CHARS else message
    return RayJobError(f"a worker failed: {name}{f': {shown}' if shown else ''}. {RESUME}")


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a class of the user's; the end of a job is no place for its fault
        return ""
