"""What this process may use of its machine: CPUs and memory, under its affinity and its control groups.

A container, a pod or a service is limited by control groups, of version 1, 2 or both side by side. Each level counts,
from the process's own group up to the top of what is mounted: a pod's limit binds the containers in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_ROOT = Path("/")
_FILE_PAGES = ("active_file", "inactive_file")  # page cache; shared memory, which cannot be dropped, is not in it


def usable_cpus(root: Path = _ROOT) -> float:
    """CPUs this process may keep busy: those of its affinity, as far as its groups' quotas reach; above 0.

    Args:
        root: where `/proc` and the control groups are looked for.
    """
    quotas = [quota for group in _groups(root, "cpu") if (quota := _cpu_quota(group)) is not None]
    return min([float(len(os.sched_getaffinity(0))), *quotas])


def available_bytes(root: Path = _ROOT) -> int:
    """Memory this process could still take, the page cache it would push out included; never below 0.

    It is the least of what the machine has available and what each control group leaves below its limit.

    Args:
        root: where `/proc` and the control groups are looked for.
    """
    rooms = [room for group in _groups(root, "memory") if (room := _memory_room(group)) is not None]
    return max(0, min([_machine_bytes(root), *rooms]))


@dataclass(frozen=True, slots=True)
class _Group:
    """One control group's folder."""

    path: Path
    is_v2: bool

    def number(self, name: str) -> int | None:
        """The file's number; None where it is not there or says that there is no limit."""
        text = self.text(name)
        return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else None

    def text(self, name: str) -> str | None:
        return _text(self.path / name)

    def table(self, name: str) -> dict[str, int]:
        """A file of `name number` lines."""
        pairs = (line.split() for line in (self.text(name) or "").splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _memory_room(group: _Group) -> int | None:
    """Bytes below the group's limit, dropping its page cache; None where it has no limit."""
    stat = group.table("memory.stat")
    if group.is_v2:
        # Above `high` the kernel slows a group down until it is below again.
        limits = [group.number("memory.max"), group.number("memory.high")]
        usage, prefix = group.number("memory.current"), ""
    else:
        # Inside a container the groups above are not visible, but this tells the least of their limits.
        limits = [group.number("memory.limit_in_bytes"), stat.get("hierarchical_memory_limit")]
        usage, prefix = group.number("memory.usage_in_bytes"), "total_"  # of the groups below as well
    known = [limit for limit in limits if limit is not None]
    if not known:
        return None
    cache = sum(stat.get(prefix + name, stat.get(name, 0)) for name in _FILE_PAGES)
    return min(known) - max(0, (usage or 0) - cache)


def _cpu_quota(group: _Group) -> float | None:
    """CPUs the group may keep busy; None where it has no quota."""
    if group.is_v2:
        quota_text, _, period_text = (group.text("cpu.max") or "max").partition(" ")
        quota, period = (int(text) if text.isdigit() else 0 for text in (quota_text, period_text))
    else:
        quota, period = group.number("cpu.cfs_quota_us") or 0, group.number("cpu.cfs_period_us") or 0
    return quota / period if quota > 0 and period > 0 else None


def _machine_bytes(root: Path) -> int:
    """Memory that is free or can be freed without swapping."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo") or "", re.MULTILINE)
    if found:
        return int(found[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _groups(root: Path, controller: str) -> Iterator[_Group]:
    """This process's groups that may limit what a controller governs, each with all above it that are mounted."""
    paths = _group_paths(root, controller)
    for line in (_text(root / "proc/self/mountinfo") or "").splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.partition(" ")
        is_v2 = kind == "cgroup2"
        if not is_v2 and (kind != "cgroup" or controller not in options.split()[-1].split(",")):
            continue
        if is_v2 not in paths:
            continue
        mounted, mount = (PurePosixPath(_unescaped(field)) for field in fields.split()[3:5])
        top = root / mount.relative_to("/")
        folder = top / _below(paths[is_v2], mounted)
        while folder != top and not folder.is_dir():
            folder = folder.parent
        for path in (folder, *folder.parents):
            yield _Group(path, is_v2)
            if path == top:
                break


def _group_paths(root: Path, controller: str) -> dict[bool, PurePosixPath]:
    """Where the process is in the hierarchy of version 2 (True) and in the controller's own of version 1 (False)."""
    paths = {}
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            paths[True] = PurePosixPath(path)
        elif controller in controllers.split(","):
            paths[False] = PurePosixPath(path)
    return paths


def _below(path: PurePosixPath, mounted: PurePosixPath) -> PurePosixPath:
    """A group's place below the mount of `mounted`; the mount itself where the group lies outside of it."""
    inside = path.relative_to(mounted) if path.is_relative_to(mounted) else PurePosixPath()
    return PurePosixPath() if ".." in inside.parts else inside


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
