"""Folders that are one table together: some of their files hold deleted rows or older versions; none is read loose."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection
from typing import Literal, TypeAlias

from ray_job.errors import InputError
from ray_job.spec import InputSpec
from ray_job.storage.places import Location

TableFormat: TypeAlias = Literal["delta", "iceberg", "lance", "hf"]
# What the folder of a table holds, by names relative to it; all patterns must be met.
_SIGNS: tuple[tuple[TableFormat, tuple[str, ...]], ...] = (
    ("delta", (r"_delta_log/.+",)),
    ("iceberg", (r"metadata/[^/]+\.metadata\.json(\.gz)?",)),
    ("iceberg", (r"[^/]+\.metadata\.json(\.gz)?",)),
    ("lance", (r"_versions/.+",)),
    ("hf", (r"dataset_dict\.json",)),
    ("hf", (r"state\.json", r"dataset_info\.json")),
)


def find_table(spec: InputSpec, names: Collection[str], root: Location) -> TableFormat | None:
    """The table that the input is, if it is one.

    Args:
        spec: with the format asked for.
        names: of all files of the input, relative to its folder.
        root: that folder.

    Raises:
        InputError: a table lies among other files, or its files are asked for as loose ones.
    """
    for format_, signs in _SIGNS:
        if spec.format == format_:
            return format_
        folders = set.intersection(
            *({f for f in (_folder(name, sign) for name in names) if f is not None} for sign in signs)
        )
        if not folders or (spec.format != "auto" and format_ == "hf"):
            continue
        folder = min(folders, key=lambda folder: (len(folder), folder))
        if folder == "" and spec.format == "auto":
            return format_
        place = root.at(posixpath.join(root.path, folder)) if folder else root
        raise InputError(
            f"{place}: this folder is a table of format {format_}, and not all of its files hold rows of it. Set "
            f"input.path to it, and input.format to {format_} or auto"
        )
    return None


def _folder(name: str, sign: str) -> str | None:
    """The folder from which on a name shows the sign; None where it does from none."""
    found = re.fullmatch(rf"(?:(.*?)/)?{sign}", name, re.DOTALL)
    return None if found is None else found[1] or ""
