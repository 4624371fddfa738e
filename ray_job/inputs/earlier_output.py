"""Outputs of earlier jobs as inputs: `data/part-*.parquet` and `errors/part-*.parquet` beside a `_manifest.json`.

A finished one holds each row once, in its answers or in its errors. Before that a row may be in both.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable

from pyarrow import fs

from ray_job.errors import InputError
from ray_job.storage.places import STORAGE_ERRORS, Location, reason

_PART = re.compile(r"(?:(.*)/)?(?:data|errors)/part-[^/]*\.parquet", re.DOTALL)
_MANIFEST, _SUCCESS = "_manifest.json", "_SUCCESS"


def check_finished(root: Location, names: Iterable[str]) -> None:
    """Checks that outputs among the input's files are finished.

    Args:
        root: the input's folder.
        names: of its files.

    Raises:
        InputError: one is not, or the storage fails.
    """
    for folder in {match[1] or "": None for match in map(_PART.fullmatch, names) if match is not None}:
        output = root.at(posixpath.join(root.path, folder)) if folder else root
        marks = [posixpath.join(output.path, name) for name in (_MANIFEST, _SUCCESS)]
        try:
            manifest, success = (info.type != fs.FileType.NotFound for info in root.filesystem.get_file_info(marks))
        except STORAGE_ERRORS as error:
            raise InputError(f"{output}: {reason(error)}") from None
        if manifest and not success:
            raise InputError(
                f"{output}: the output of a run that is not finished, so rows may be in it twice. Finish it with "
                f"--mode resume, or set input.path to {output}/data for the answers that there are"
            )
