"""Runs one engine on a thread of its own and feeds it from many callers.

Batches in flight meet in the engine, so it never drains between them. A caller hands in samples and gets futures.
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
        self._futures: dict[int, tuple[int, Future[Result]]] = {}
        self._next_key = 0
        self._broken: BaseException | None = None
        self.busy_since_s: float | None = None  # when the step that runs now began, by time.monotonic
        self.idle_s = 0.0  # spent without a row to work on, the wait for the first one not counted
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, samples: Iterable[Sample]) -> list[Future[Result]]:
        """Queues samples; each future ends with that sample's result, under the caller's key.

        Raises:
            RuntimeError: the engine failed earlier in a way that is not one sample's fault.
        """
        futures = []
        for sample in samples:
            if self._broken is not None:
                raise RuntimeError("the engine has failed") from self._broken
            future: Future[Result] = Future()
            self._inbox.put((sample, future))
            futures.append(future)
        return futures

    @property
    def num_rows(self) -> int:
        """Samples submitted and not answered yet."""
        return len(self._futures) + self._inbox.qsize()

    def close(self) -> None:
        """Ends the thread after the work at hand."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_open = True
        try:
            while is_open or self._engine.has_work:
                is_open = self._take_in(wait=not self._engine.has_work) and is_open
                if self._engine.has_work:
                    self.busy_since_s = time.monotonic()
                    for result in self._engine.step():
                        key, future = self._futures.pop(result.key)
                        future.set_result(replace(result, key=key))
                    self.busy_since_s = None
        except BaseException as error:
            self._fail(error)

    def _take_in(self, wait: bool) -> bool:
        """Moves what was submitted into the engine; blocks for the first sample when there is nothing to do."""
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
            self._futures[self._next_key] = (sample.key, future)
            self._engine.add(replace(sample, key=self._next_key))
            self._next_key += 1
            wait = False

    def _fail(self, error: BaseException) -> None:
        """Hands the failure to every caller, so that none waits for ever."""
        self._broken = error
        waiting = [future for _, future in self._futures.values()]
        while not self._inbox.empty():
            entry = self._inbox.get()
            if entry is not None:
                waiting.append(entry[1])
        for future in waiting:
            future.set_exception(error)
