"""The pictures of a block's rows, fetched side by side before they are needed.

However many rows name a picture, it is fetched once, and held until the last of them is done. At most so many are asked
for at once, and no more are begun than fit into the bytes allowed, by the largest seen so far. What a row needs is
fetched in any case, so a picture larger than all that is allowed only waits for its turn.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from ray_job.errors import RowError
from ray_job.inputs.documents.references import page_reference, split_reference
from ray_job.inputs.pictures.embedded import is_embedded

MAX_BYTES = 256 * 2**20


@dataclass(slots=True)
class _Picture:
    """One reference."""

    rows_left: int  # that name it and are not done
    future: Future[bytes] | None = None  # None: not begun, or to be tried again
    is_begun: bool = False
    num_bytes: int = 0  # held


class PictureFetcher:
    """Fetches the pictures of rows ahead, in the order of the rows.

    Args:
        references: for each row, those of its pictures that lie elsewhere (`reference_of`).
        read: fetches one picture; raises RowError. Called from several threads.
        max_fetches: at once.
        max_image_bytes: what a picture may have; assumed until one has come, or failed.
        max_bytes: of pictures that have come, or are on their way, and are not used yet.
    """

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        read: Callable[[str], bytes],
        max_fetches: int,
        max_image_bytes: int,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._references = [list(dict.fromkeys(row)) for row in references]
        self._read = read
        self._max_fetches, self._max_bytes = max_fetches, max_bytes
        self._pictures: dict[str, _Picture] = {}
        for row in self._references:
            for reference in row:
                self._pictures.setdefault(reference, _Picture(0)).rows_left += 1
        self._waiting = deque(self._pictures)
        self._num_running = self._num_bytes = 0
        self._expected_bytes = max_image_bytes  # of a picture on its way
        self._has_seen_one = False
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_fetches, "fetch") if self._pictures else None

    def __enter__(self) -> Self:
        with self._lock:
            self._begin_more()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with self._lock:
            self._waiting.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def bytes_of(self, reference: str) -> bytes:
        """The picture's encoded bytes, waited for.

        Raises:
            RowError: it cannot be read. Where trying again may help, the next call does.
        """
        with self._lock:
            picture = self._pictures[reference]
            future = picture.future or self._begin(reference, picture)
        try:
            return future.result()
        except RowError as error:
            if error.is_retryable:
                with self._lock:
                    if picture.future is future:
                        picture.future = None
            raise

    def knows(self, reference: str | None) -> bool:
        """Whether it is one of the rows'."""
        return reference in self._pictures

    def done(self, row: int) -> None:
        """Lets go of the pictures of a row, given by its place, that no other row waits for."""
        with self._lock:
            for reference in self._references[row]:
                picture = self._pictures[reference]
                picture.rows_left -= 1
                if not picture.rows_left:
                    self._num_bytes -= picture.num_bytes
                    picture.num_bytes, picture.future = 0, None
            self._begin_more()

    def _begin_more(self) -> None:
        while self._waiting and self._num_running < self._max_fetches:
            expected = self._num_bytes + (self._num_running + 1) * self._expected_bytes
            if expected > self._max_bytes:
                return
            reference = self._waiting.popleft()
            picture = self._pictures[reference]
            if picture.rows_left and not picture.is_begun:
                self._begin(reference, picture)

    def _begin(self, reference: str, picture: _Picture) -> Future[bytes]:
        assert self._pool is not None
        self._num_running += 1
        picture.is_begun = True
        picture.future = self._pool.submit(self._fetch, reference, picture)
        return picture.future

    def _fetch(self, reference: str, picture: _Picture) -> bytes:
        data = b""
        try:
            data = self._read(reference)
            return data
        finally:
            with self._lock:
                self._num_running -= 1
                if picture.rows_left:
                    self._num_bytes += len(data) - picture.num_bytes
                    picture.num_bytes = len(data)
                least = self._expected_bytes if self._has_seen_one else 0
                self._expected_bytes, self._has_seen_one = max(least, len(data)), True
                self._begin_more()


def reference_of(value: Any) -> str | None:
    """Where a picture's bytes must be fetched from; None where the row holds them, or what stands there is no text."""
    if isinstance(value, Mapping) and value.get("bytes") is None:
        value = value.get("path")
    if not isinstance(value, str) or not value.strip() or is_embedded(value):
        return None
    file, page = split_reference(value)
    return value if page is None else page_reference(file, 1)  # all pages of a file are fetched together
