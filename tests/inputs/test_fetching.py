"""Pictures fetched ahead: side by side, each once, in bounded memory, with the same errors and tries as one by one."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.pictures.fetching import PictureFetcher, reference_of


class Store:
    """Pictures by name; a name that is not there fails, one in `passing` so many times."""

    def __init__(self, sizes: dict[str, int], passing: dict[str, int] | None = None) -> None:
        self.asked: Counter[str] = Counter()
        self.most_at_once = 0
        self._sizes, self._passing = sizes, dict(passing or {})
        self._num_inside = 0
        self._lock = threading.Lock()

    def read(self, name: str) -> bytes:
        with self._lock:
            self.asked[name] += 1
            self._num_inside += 1
            self.most_at_once = max(self.most_at_once, self._num_inside)
        try:
            with self._lock:
                if self._passing.get(name):
                    self._passing[name] -= 1
                    raise RowError(ErrorCode.STORAGE, f"{name}: slow down")
            if name not in self._sizes:
                raise RowError(ErrorCode.IMAGE_MISSING, f"{name}: no such file")
            return name.encode().ljust(self._sizes[name], b".")
        finally:
            with self._lock:
                self._num_inside -= 1


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=4), max_size=12),
    sizes=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 60)),
    passing=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 3)),
    max_fetches=st.integers(1, 4),
    max_bytes=st.integers(1, 200),
)
def test_rows_get_what_reading_one_by_one_gives(
    rows: list[list[str]], sizes: dict[str, int], passing: dict[str, int], max_fetches: int, max_bytes: int
) -> None:
    def outcome(read: object, name: str) -> bytes | str:
        try:
            return read(name)  # type: ignore[operator, no-any-return]
        except RowError as error:
            return error.message

    store, alone = Store(sizes, passing), Store(sizes, passing)
    expected: dict[str, bytes | str] = {}
    with PictureFetcher(rows, store.read, max_fetches, max_image_bytes=60, max_bytes=max_bytes) as fetcher:
        for place, row in enumerate(rows):
            for name in row:
                if not isinstance(expected.get(name), bytes) and not str(expected.get(name)).endswith("no such file"):
                    expected[name] = outcome(alone.read, name)  # what failed for a passing reason is tried again
                assert outcome(fetcher.bytes_of, name) == expected[name]
            fetcher.done(place)
    assert store.asked == alone.asked
    assert store.most_at_once <= max_fetches


def test_pictures_are_asked_for_side_by_side_up_to_a_limit() -> None:
    meeting = threading.Barrier(4)  # opens when four ask at once, and for no fewer

    def read(name: str) -> bytes:
        meeting.wait(timeout=30)
        return name.encode()

    names = [f"{number}" for number in range(8)]
    with PictureFetcher([[name] for name in names], read, 4, max_image_bytes=1) as fetcher:
        assert [fetcher.bytes_of(name) for name in names] == [name.encode() for name in names]


def test_what_is_fetched_ahead_fits_the_bytes_allowed() -> None:
    """Ten pictures of 10 bytes, 35 allowed: never more than three are held or on their way, whatever rows wait for."""
    held: set[str] = set()
    most: list[int] = []
    lock = threading.Lock()

    def read(name: str) -> bytes:
        with lock:
            held.add(name)
            most.append(len(held))
        return bytes(10)

    names = [f"{number}" for number in range(10)]
    with PictureFetcher([[name] for name in names], read, 8, max_image_bytes=10, max_bytes=35) as fetcher:
        for place, name in enumerate(names):
            fetcher.bytes_of(name)
            with lock:
                held.discard(name)
            fetcher.done(place)
    assert max(most) == 3


def test_until_a_picture_has_come_each_may_be_as_large_as_the_limit() -> None:
    begun = threading.Semaphore(0)
    go_on = threading.Event()
    asked: list[str] = []

    def read(name: str) -> bytes:
        asked.append(name)
        begun.release()
        go_on.wait(30)
        return bytes(1)

    names = [f"{number}" for number in range(20)]
    with (
        PictureFetcher([[name] for name in names], read, 16, max_image_bytes=64, max_bytes=256) as fetcher,
        ThreadPoolExecutor(1) as other,
    ):
        first = other.submit(fetcher.bytes_of, "0")
        for _ in range(4):
            assert begun.acquire(timeout=30)
        assert sorted(asked) == ["0", "1", "2", "3"], "256 bytes hold four pictures of 64"
        go_on.set()
        first.result(30)
        for _ in range(12):
            assert begun.acquire(timeout=30), "they turned out to be small"


def test_a_picture_larger_than_all_that_is_allowed_is_fetched_when_it_is_needed() -> None:
    store = Store({"a": 100, "b": 100, "c": 100})
    with PictureFetcher([["a", "b"], ["b", "c"]], store.read, 4, max_image_bytes=1000, max_bytes=10) as fetcher:
        assert [len(fetcher.bytes_of(name)) for name in "ab"] == [100, 100]
        fetcher.done(0)
        assert [len(fetcher.bytes_of(name)) for name in "bc"] == [100, 100]
        fetcher.done(1)
    assert store.asked == {"a": 1, "b": 1, "c": 1}


def test_nothing_is_fetched_for_rows_that_are_left() -> None:
    asked: list[str] = []
    stop = threading.Event()

    def read(name: str) -> bytes:
        asked.append(name)
        stop.wait(30)
        return b"x"

    with PictureFetcher([[f"{n}"] for n in range(50)], read, 2, max_image_bytes=1):
        stop.set()
    assert len(asked) < 50


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a.png", "a.png"),
        ("https://host/a.png", "https://host/a.png"),
        ({"bytes": None, "path": "a.png"}, "a.png"),
        ({"path": "a.png"}, "a.png"),
        ({"bytes": b"x", "path": "a.png"}, None),
        ({"bytes": b"", "path": "a.png"}, None),
        ({"bytes": None, "path": None}, None),
        ("data:image/png;base64,AAAA", None),
        ("DATA:image/png;base64,AAAA", None),
        (b"x", None),
        ("  ", None),
        (None, None),
        (5, None),
    ],
)
def test_what_lies_elsewhere(value: object, expected: str | None) -> None:
    assert reference_of(value) == expected


def test_pictures_that_fail_do_not_hold_up_the_others() -> None:
    meeting = threading.Barrier(8)  # opens when eight ask at once

    def read(name: str) -> bytes:
        if int(name) >= 4:
            meeting.wait(timeout=30)
        raise RowError(ErrorCode.IMAGE_MISSING, f"{name}: no such file")

    names = [f"{number}" for number in range(12)]
    with PictureFetcher([[name] for name in names], read, 8, max_image_bytes=64, max_bytes=256) as fetcher:
        for place, name in enumerate(names):
            with pytest.raises(RowError, match=f"{name}: no such file"):
                fetcher.bytes_of(name)
            fetcher.done(place)
