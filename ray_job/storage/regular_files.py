"""What is no file that can be read, told before it is opened."""

from __future__ import annotations

from pyarrow import fs

from ray_job.storage.places import Location

_WHY = {fs.FileType.NotFound: "no such file", fs.FileType.Directory: "is a folder"}


def why_unreadable(location: Location) -> str | None:
    """Why there is no regular file on a local disk; None where there is one, and for buckets, which hold nothing else.

    Opening a pipe or a device would wait for ever.

    Raises:
        OSError: the storage fails.
    """
    if not location.is_local:
        return None
    kind = location.filesystem.get_file_info(location.path).type
    return None if kind == fs.FileType.File else _WHY.get(kind, "is not a regular file")
