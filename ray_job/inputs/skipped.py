"""Files among the input's that hold none of its rows: how many for each reason, and the first of their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class SkippedFiles:
    """Files skipped for one reason."""

    reason: str
    num_files: int
    examples: tuple[str, ...]  # names of the first


@dataclass(frozen=True, slots=True)
class Skipped:
    """What is left out of an input, by reason. Small however many files there are."""

    groups: tuple[SkippedFiles, ...] = ()

    @classmethod
    def of(cls, files: Iterable[tuple[str, str]]) -> Skipped:
        """Counts files, given as name and reason; reasons in order of first sight."""
        counts: dict[str, int] = {}
        examples: dict[str, list[str]] = {}
        for name, reason in files:
            counts[reason] = counts.get(reason, 0) + 1
            if counts[reason] <= _EXAMPLES:
                examples.setdefault(reason, []).append(name)
        return cls(tuple(SkippedFiles(reason, num, tuple(examples[reason])) for reason, num in counts.items()))

    @classmethod
    def of_dict(cls, value: Mapping[str, Any]) -> Skipped:
        """What `to_dict` made."""
        return cls(
            tuple(SkippedFiles(reason, each["files"], tuple(each["examples"])) for reason, each in value.items())
        )

    @property
    def num_files(self) -> int:
        """Files of all reasons."""
        return sum(group.num_files for group in self.groups)

    def text(self) -> str:
        """All of it on a line: `3 files: 2 texts (a.txt, b.md), 1 hidden (.DS_Store)`."""
        groups = [
            f"{group.num_files} {group.reason} ({', '.join(group.examples)}"
            + (", …)" if group.num_files > len(group.examples) else ")")
            for group in self.groups
        ]
        return f"{counted(self.num_files)}: {', '.join(groups)}"

    def to_dict(self) -> dict[str, Any]:
        """JSON: reason → how many files, and the names of the first."""
        return {group.reason: {"files": group.num_files, "examples": list(group.examples)} for group in self.groups}


def counted(num_files: int) -> str:
    """`1 file`, `2 files`."""
    return "1 file" if num_files == 1 else f"{num_files} files"


NOTHING = Skipped()
