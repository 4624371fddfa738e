"""Which of an input's files hold its rows: the format they decide on together, and why the others are skipped.

Parquet, JSON lines and pictures by their names come first, and two of these are a question to the user. A CSV, a JSON
file or a PDF beside them is skipped, and said to be. What describes pictures or shards is no rival either: metadata,
captions of the same name, and img2dataset's `00000.parquet` beside `00000/` or `00000.tar`.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import cast

from ray_job.errors import InputError
from ray_job.inputs.detection import SUFFIXES, Kind, by_name
from ray_job.inputs.skipped import Skipped
from ray_job.spec.input import Format

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CAPTION_SUFFIXES = (".txt", ".caption", ".json")

_FAMILIES: tuple[tuple[Format, ...], ...] = (("jsonl", "json"), ("csv", "tsv"))
_FIRST: tuple[Format, ...] = ("parquet", "images", "jsonl")
_NO_FORMATS: dict[Kind, str] = {
    "hidden": "hidden",
    "marker": "left by other programs",
    "text": "text",
    "object": "single JSON object",
    "empty": "empty",
    "other": "of no known format",
}


def is_metadata(name: str) -> bool:
    """Whether a file describes the pictures of its folder."""
    return posixpath.basename(name) in METADATA_NAMES


def family(kind: Kind) -> tuple[Kind, ...]:
    """The kinds that one reader reads, this one among them."""
    return next((kinds for kinds in _FAMILIES if kind in kinds), (kind,))


class FileKinds:
    """What each of an input's files holds, by name, and what follows from all together."""

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self._kinds = kinds

    def format(self, where: str) -> Format:
        """The one format that the files make up.

        Args:
            where: they lie, for messages.

        Raises:
            InputError: there is none, or it is for the user to say.
        """
        if not self._kinds:
            raise InputError(f"{where}: the folder holds no files; check input.path")
        if all(posixpath.basename(name) == METADATA_NAMES[0] for name in self._kinds):
            return "images"  # named by itself; its pictures are where it says
        rivals = {name: kind for name, kind in self._kinds.items() if not self._is_aside(name)}
        counts = Counter(rivals.values())
        named = {by_name(name) for name in rivals}
        first: list[Kind] = [kind for kind in _FIRST if kind in named]
        formats = first or [kind for kind in counts if kind not in _NO_FORMATS]
        if not formats and counts["object"]:
            return "json"
        families = {family(kind) for kind in formats}
        if len(families) == 1:
            return cast(Format, next(kind for kind in families.pop() if counts[kind]))
        if formats:
            held = ", ".join(f"{counts[kind]} {kind}" for kind in formats)
            text = f"files of several formats ({held}); set input.format to say which holds the rows"
            raise InputError(f"{where}: {text}")
        known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
        there = Skipped.of((name, _NO_FORMATS.get(kind, f"of format {kind}")) for name, kind in self._kinds.items())
        raise InputError(
            f"{where}: no file is known to hold rows; found {there.text()}. Set input.format if you know it, or "
            f"unpack and convert it. Known are, by content or by name, {known}; and JSON, CSV and TSV of any name"
        )

    def reason_skipped(self, name: str, format_: Format) -> str | None:
        """Why a file found in a folder is none of the format's; None where it is one, or describes one."""
        kind = self._kinds[name]
        if format_ == "documents" and name.lower().endswith((".tif", ".tiff")):  # alone they are pictures
            return None
        if format_ == "images" and (is_metadata(name) or self.is_caption(name)):
            return None
        if kind not in ("hidden", "marker") and format_ != "images" and _is_underscored(name):
            kind = "hidden"
        if format_ != "parquet" and self._is_index(name):
            return "index of a folder or shard"
        if kind in family(format_) or (kind == "object" and format_ in family("json") and not self._has_named_lines):
            return None
        return _NO_FORMATS.get(kind, f"of format {kind}")

    def is_caption(self, name: str) -> bool:
        """Whether it is a text or a JSON object that lies beside a picture of its name."""
        stem, suffix = posixpath.splitext(name)
        return self._kinds[name] in ("text", "object") and suffix in CAPTION_SUFFIXES and stem in self._picture_stems

    def _is_aside(self, name: str) -> bool:
        """Whether a file has no say in what the format is."""
        if self._is_index(name) or (_is_underscored(name) and self._kinds[name] != "images"):
            return True
        return is_metadata(name) and bool(self._picture_stems)

    def _is_index(self, name: str) -> bool:
        """Whether a Parquet file says what is in a folder or shard of its name."""
        stem = name.removesuffix(".parquet")
        return stem != name and (f"{stem}.tar" in self._kinds or stem in self._picture_folders)

    @cached_property
    def _picture_stems(self) -> frozenset[str]:
        return frozenset(posixpath.splitext(name)[0] for name, kind in self._kinds.items() if kind == "images")

    @cached_property
    def _picture_folders(self) -> frozenset[str]:
        return frozenset(map(posixpath.dirname, self._picture_stems))

    @cached_property
    def _has_named_lines(self) -> bool:
        """Whether files are called JSON lines: a `.json` with one object beside them describes them."""
        return any(by_name(name) == "jsonl" for name in self._kinds)


def _is_underscored(name: str) -> bool:
    """Whether Spark and Arrow would take it for hidden; cameras call pictures _MG_1234.jpg."""
    return any(part.startswith("_") for part in name.split("/"))
