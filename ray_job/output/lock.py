"""Allows one run at a time in a local output folder. The lock is the kernel's, so that it ends with its process."""

from __future__ import annotations

import fcntl
import os
from typing import Self

from ray_job.errors import SpecError
from ray_job.storage.places import Location
from ray_job.storage.whole_files import make_folders

_NAME = ".lock"


class Lock:
    """Held until it is closed. On an object store there is no lock: rows that two runs answered at the same time are
    found and dropped when the output is finished."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, root: Location) -> Self:
        """Creates the folder and locks it.

        Raises:
            SpecError: another run holds it, or the folder cannot be written.
        """
        if not root.is_local:
            return cls(None)
        try:
            make_folders(root.path)
            descriptor = os.open(os.path.join(root.path, _NAME), os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise SpecError([f"output.path: {root} cannot be written: {error.strerror}"]) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise SpecError([f"output.path: another run is writing to {root}; wait for it, or stop it"]) from None
        except OSError:  # a file system without locks
            os.close(descriptor)
            return cls(None)
        return cls(descriptor)

    def close(self) -> None:
        """Releases the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(root: Location) -> bool | None:
    """Whether a run is writing there now; None if that cannot be told."""
    path = os.path.join(root.path, _NAME)
    if not root.is_local or not os.path.exists(path):
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False
