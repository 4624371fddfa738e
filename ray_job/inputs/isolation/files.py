"""A file of the input for random access, with every failure named as the row's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray_job.errors import ErrorCode, RowError
from ray_job.storage.places import STORAGE_ERRORS, Location, reason
from ray_job.storage.regular_files import why_unreadable


@contextmanager
def opened_file(location: Location, unreadable: ErrorCode) -> Iterator[Any]:
    """A `pyarrow.NativeFile`.

    Args:
        location: of the file.
        unreadable: the error where the job may not read it.

    Raises:
        RowError: IMAGE_MISSING, `unreadable`; STORAGE where trying again may help.
    """
    try:
        if (why := why_unreadable(location)) is not None:
            raise _missing(location, why)
        with location.filesystem.open_input_file(location.path) as file:
            yield file
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(location, "no such file") from None
    except PermissionError as error:
        raise RowError(unreadable, f"{location}: {reason(error)}") from None
    except STORAGE_ERRORS as error:
        raise RowError(ErrorCode.STORAGE, f"{location}: {reason(error)}") from None


def _missing(location: Location, why: str) -> RowError:
    return RowError(ErrorCode.IMAGE_MISSING, f"{location}: {why}")
