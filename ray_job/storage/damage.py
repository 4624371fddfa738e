"""Whether a file that could not be read is damaged, or its storage failed and may do better later."""

from __future__ import annotations

import re

import pyarrow as pa

_STORE_ERRORS = re.compile(r"AWS Error|google::cloud|Azure|HDFS|hdfs|curl|HTTP")


def is_damage(error: Exception) -> bool:
    """Whether what was read is damaged; otherwise it is the storage that failed."""
    if isinstance(error, pa.ArrowCancelled):
        return False
    if not isinstance(error, OSError):
        return isinstance(error, pa.ArrowException | ValueError)
    # What Arrow finds wrong with a file is an OSError too, but of no system call and no store.
    return error.errno is None and _STORE_ERRORS.search(str(error)) is None
