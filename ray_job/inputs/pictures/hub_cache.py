"""Snapshots in Hugging Face's cache: their files are links into the `blobs` folder of the same repository.

datasets--ORG--NAME/snapshots/REVISION/images/1.png → datasets--ORG--NAME/blobs/DIGEST
"""

from __future__ import annotations

import os
import re

_SNAPSHOT = re.compile(r"(.*/(?:datasets|models|spaces)--[^/]+)/snapshots/[^/]+(?:/.*)?")


def is_blob_of_snapshot(path: str, root: str) -> bool:
    """Whether a file of a snapshot leads to a blob of the snapshot's own repository.

    Args:
        path: of the file; absolute, as any of the root's.
        root: the folder it was found in, within a snapshot.
    """
    match = _SNAPSHOT.fullmatch(root)
    return match is not None and os.path.dirname(os.path.realpath(path)) == os.path.realpath(f"{match[1]}/blobs")
