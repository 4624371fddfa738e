"""From what a user names, a folder or a pinned hub repository, to a local folder. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from ray_job.errors import ModelError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# No Python files and no pickles: nothing from the hub is ever executed.
_PATTERNS = ["*.json", "*.jinja", "*.safetensors"]


def snapshot_folder(path_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """A local folder as it is; a hub id as the folder its pinned snapshot is downloaded to.

    Only JSON files, chat templates and safetensors are downloaded. Raises ModelError for a folder that does not exist,
    a hub id without a 40-digit commit as `revision`, or a failed download.
    """
    try:
        folder = Path(path_or_hub_id).expanduser()
        if folder.is_dir():
            return folder
    except (OSError, RuntimeError) as error:  # a name too long, a folder of somebody else's, no such user's home
        raise ModelError(f"model {str(path_or_hub_id)!r}: cannot be looked for: {error}") from None
    name = str(path_or_hub_id)
    if isinstance(path_or_hub_id, Path) or not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise ModelError(f"model {name!r}: no such folder, and not a hub id of the form organisation/name")
    if revision is None or not _COMMIT.fullmatch(revision):
        raise ModelError(
            f"model {name!r} on the hub: revision is {revision!r}; pin it to a full commit of 40 hexadecimal "
            "digits (see the repository's commit list), as a branch or tag may change between two runs"
        )
    return _download(name, revision)


def _download(name: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_PATTERNS))
    except Exception as error:  # its own, and those of whichever HTTP library a release is built on
        raise ModelError(f"model {name!r} at {revision}: the download failed: {error}") from error
