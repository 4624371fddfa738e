"""Runs one engine on a thread of its own and feeds it from many callers.

Blocks in flight meet in the engine, so it never drains between them. A caller hands in samples and gets futures. Every
future ends in exactly one way, whatever the engine or other callers do: with its result, with an exception, or
cancelled by its caller.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import replace

from ray_job.engine.interface import Engine
from ray_job.rows import Result, Sample

_Entry = tuple[Sample, "Future[Result]"]


class EngineLoop:
    """Owns an engine; nobody else may touch it once the loop runs."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inbox: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._futures: dict[int, tuple[int, Future[Result]]] = {}  # of rows in the engine, by the loop's own key
        self._next_key = 0
        self._lock = threading.Lock()  # over the two below and what is put into the inbox
        self._is_closed = False
        self._failure: BaseException | None = None
        self.busy_since_s: float | None = None  # when the current step began, by time.monotonic
        self.idle_s = 0.0  # spent without a row to work on, the wait for the first one not counted
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, samples: Iterable[Sample]) -> list[Future[Result]]:
        """Queues samples, all or none; each future ends with that sample's result, under the caller's key.

        A future may be cancelled at any time before its result is there. Its row may still run to its end.

        Raises:
            RuntimeError: the loop is closed, or the engine failed earlier in a way that is not one sample's fault.
        """
        entries = [(sample, Future[Result]()) for sample in samples]
        with self._lock:
            if self._failure is not None:
                raise RuntimeError("the engine has failed") from self._failure
            if self._is_closed:
                raise RuntimeError("the engine loop is closed and takes no more samples")
            for entry in entries:
                self._inbox.put(entry)
        return [future for _, future in entries]

    @property
    def num_rows(self) -> int:
        """Samples submitted and not answered yet."""
        return len(self._futures) + max(0, self._inbox.qsize() - self._is_closed)  # closing is in the inbox too

    def close(self) -> None:
        """Takes no more samples, and ends the thread after those submitted. May be called again, and by any thread."""
        with self._lock:
            if not self._is_closed and self._failure is None:
                self._inbox.put(None)
            self._is_closed = True
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        is_open = True
        try:
            while is_open or self._engine.has_work:
                is_open = self._take_in(wait=not self._engine.has_work) and is_open
                if self._engine.has_work:
                    self._step()
                if self._futures and not self._engine.has_work:
                    raise RuntimeError(f"the engine has no work left and did not answer {len(self._futures)} rows")
        except BaseException as error:
            self._fail(error)

    def _step(self) -> None:
        self.busy_since_s = time.monotonic()
        try:
            for result in self._engine.step():
                key, future = self._futures[result.key]
                answer = replace(result, key=key)
                del self._futures[result.key]
                if future.set_running_or_notify_cancel():
                    future.set_result(answer)
        finally:
            self.busy_since_s = None

    def _take_in(self, wait: bool) -> bool:
        """Moves what was submitted into the engine; False once the loop is closed and all of it is in.

        Args:
            wait: for the first sample.
        """
        while True:
            started_s = time.monotonic()
            try:
                entry = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            if wait and self._next_key:
                self.idle_s += time.monotonic() - started_s
            if entry is None:
                return False
            sample, future = entry
            if future.cancelled():
                future.set_running_or_notify_cancel()
                continue
            self._futures[self._next_key] = (sample.key, future)
            self._next_key += 1
            self._engine.add(replace(sample, key=self._next_key - 1))
            wait = False

    def _fail(self, error: BaseException) -> None:
        """Hands the failure to every caller, so that none waits for ever."""
        with self._lock:
            self._failure = error
            waiting = [future for _, future in self._futures.values()]
            self._futures.clear()
            while not self._inbox.empty():
                entry = self._inbox.get()
                if entry is not None:
                    waiting.append(entry[1])
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
