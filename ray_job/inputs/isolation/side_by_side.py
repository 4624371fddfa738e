"""Many files looked at side by side, each by a process of its own, in the order they are named."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

from ray_job.inputs.files import InputFile
from ray_job.inputs.isolation.process import IsolatedProcess

_FILES_AT_ONCE = 64
_FILES_A_PROCESS = 16  # fewer are not worth starting another
_BUCKET_PROCESSES = 16  # they mostly wait
P = TypeVar("P", bound=IsolatedProcess)
T = TypeVar("T")


def each_file(files: Sequence[InputFile], make: Callable[[], P], look: Callable[[P, InputFile], T]) -> Generator[T]:
    """What a look at each file gives, in order; nothing is looked at long before it is asked for.

    Args:
        files: of any size.
        make: a process.
        look: at a file, in one of the processes.
    """
    processes = [make() for _ in range(_num_processes(files))]
    idle: SimpleQueue[P] = SimpleQueue()
    for process in processes:
        idle.put(process)

    def looked(file: InputFile) -> T:
        process = idle.get()
        try:
            return look(process, file)
        finally:
            idle.put(process)

    try:
        with ThreadPoolExecutor(max(1, len(processes)), "look") as pool:
            for start in range(0, len(files), _FILES_AT_ONCE):
                yield from pool.map(looked, files[start : start + _FILES_AT_ONCE])
    finally:
        for process in processes:
            process.close()


def _num_processes(files: Sequence[InputFile]) -> int:
    most = min(4, os.cpu_count() or 1) if not files or files[0].location.is_local else _BUCKET_PROCESSES
    return min(most, -(-len(files) // _FILES_A_PROCESS))
