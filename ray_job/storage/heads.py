"""The beginning of a file, for who wants to know what it is."""

from __future__ import annotations

from ray_job.errors import InputError
from ray_job.storage.places import STORAGE_ERRORS, Location, reason


def read_head(location: Location, num_bytes: int) -> bytes:
    """The first bytes of a file, as they are stored; fewer where it ends before.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with location.filesystem.open_input_stream(location.path, compression=None) as stream:
            return bytes(stream.read(num_bytes))
    except STORAGE_ERRORS as error:
        raise InputError(f"{location}: cannot be read: {reason(error)}") from None
