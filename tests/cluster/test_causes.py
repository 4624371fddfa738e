"""What a worker raises reaches the user as its type and message, never as Ray's advice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
import ray.data

from ray_job.cluster.causes import cause_of, true_causes
from ray_job.cluster.dataset_options import configure
from ray_job.cluster.session import ray_session
from ray_job.errors import ClusterLost, ModelError, RayJobError, SpecError
from ray_job.spec import JobSpec

pytestmark = [pytest.mark.usefixtures("session"), pytest.mark.cluster, pytest.mark.timeout(180)]
RESUME = "What is committed is whole: finish with --mode resume"
SPEC = JobSpec.from_dict({"input": {"path": "in"}, "output": {"path": "out"}})


@pytest.fixture(scope="module")
def session(local_ray: None) -> Iterator[None]:
    """One for all of this module."""
    with ray_session():
        yield


class UnpicklableError(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(f"number {number}\nand a second line")
        self.lock = threading.Lock()


class TwoArgumentsError(Exception):
    """Pickles, and does not unpickle."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


def chained() -> None:
    try:
        {}["key"]  # type: ignore[index]
    except KeyError as error:
        raise RuntimeError("outer") from error


def during() -> None:
    try:
        {}["key"]  # type: ignore[index]
    except KeyError:
        raise RuntimeError("another")  # noqa: B904


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def two_arguments() -> None:  # made where it is raised: as a closure's value it would not reach the worker
    raise TwoArgumentsError(1, 2)


def unpicklable() -> None:
    raise UnpicklableError(7)


FAILURES: dict[str, tuple[Callable[[], None], str]] = {
    "lines": (
        raising(ValueError('first\n\nthird: File "x", line 3\n    indented')),
        'ValueError: first\n\nthird: File "x", line 3\n    indented',
    ),
    "chained": (chained, "RuntimeError: outer"),
    "during": (during, "RuntimeError: another"),
    "empty": (raising(ValueError()), "ValueError"),
    "key": (raising(KeyError("column")), "KeyError: 'column'"),
    "number": (raising(ValueError(5)), "ValueError: 5"),
    "file": (raising(FileNotFoundError(2, "No such file", "/x")), "FileNotFoundError: [Errno 2] No such file: '/x'"),
    "group": (raising(ExceptionGroup("several", [ValueError("a")])), "ExceptionGroup: several"),
    "retried": (raising(OSError("AWS Error SLOW_DOWN")), "OSError: AWS Error SLOW_DOWN"),
    "unpicklable": (unpicklable, "UnpicklableError: number 7\nand a second line"),
    "two arguments": (two_arguments, "TwoArgumentsError: 1 and 2"),
}


class Broken:
    """An actor that cannot be made."""

    def __init__(self, fail: Callable[[], None]) -> None:
        fail()

    def __call__(self, table: pa.Table) -> pa.Table:
        return table


def ending(fail: Callable[[], None], of_actor: bool = False) -> RayJobError:
    """How a job ends whose task, or actor's constructor, fails."""
    rows = ray.data.range(4, override_num_blocks=1)
    configure(rows.context, SPEC)
    options: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
    if of_actor:
        pool = ray.data.ActorPoolStrategy(size=1)
        rows = rows.map_batches(Broken, fn_constructor_args=(fail,), compute=pool, **options)
    else:
        rows = rows.map_batches(lambda _: fail(), **options)
    with pytest.raises(RayJobError) as caught, true_causes():
        rows.materialize()
    return caught.value


@pytest.mark.parametrize("name", FAILURES)
def test_type_and_message_are_those_of_what_was_raised(name: str) -> None:
    fail, said = FAILURES[name]
    assert str(ending(fail)) == f"a worker failed: {said}. {RESUME}"


def test_errors_of_this_package_arrive_as_they_were_raised() -> None:
    for error in (ModelError("weights\nof two lines"), SpecError(["one", "two"], "job.yaml")):
        found = ending(raising(error))
        assert (type(found), str(found)) == (type(error), str(error))


def test_what_an_actors_constructor_raises_is_named() -> None:
    found = ending(raising(ModelError("weights\nof two lines")), of_actor=True)
    assert (type(found), str(found)) == (ModelError, "weights\nof two lines")
    assert str(ending(chained, of_actor=True)) == f"a worker failed: RuntimeError: outer. {RESUME}"


def test_a_message_that_cannot_be_made_is_left_out() -> None:
    assert str(cause_of(SpeechlessError())) == f"a worker failed: SpeechlessError. {RESUME}"


def test_the_death_of_the_drivers_raylet_says_what_to_do() -> None:
    found = cause_of(ray.exceptions.LocalRayletDiedError())
    assert (type(found), found.exit_code) == (ClusterLost, 75)
    assert str(found).endswith(RESUME)
