"""With how many threads torch computes, and how they wait: the one place where both are set."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack

# Threads of OpenMP that wait for each other by spinning would starve preparing tasks on the same cores, and themselves.
# GNU's OpenMP may spin for some microseconds, which is shorter than waking up.
_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}


def own_process() -> None:
    """Settles how threads wait, for good; in a process that belongs to an actor, before it loads torch."""
    if "torch" in sys.modules:
        return
    for name, value in _WAITING.items():
        os.environ.setdefault(name, value)


def compute_with(threads: int) -> None:
    """Lets torch compute with so many threads."""
    import torch

    torch.set_num_threads(threads)


def restore_threads(session: ExitStack) -> None:
    """When the session closes, torch has the number of threads it has now; for a process that is a user's."""
    import torch

    session.callback(torch.set_num_threads, torch.get_num_threads())
