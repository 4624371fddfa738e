"""What control groups leave of a machine: trees of both versions as kernels write them, and this machine's own."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_job.engine import host
from ray_job.engine.host import available_bytes, usable_cpus

GIB = 2**30
UNLIMITED_V1 = 9223372036854771712
MEMINFO = "MemTotal: 67108864 kB\nMemFree: 1048576 kB\nMemAvailable: 41943040 kB\n"  # 64, 1 and 40 GiB
V2_MOUNT = "35 24 0:30 {mounted} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "36 25 0:33 {mounted} /sys/fs/cgroup/{name} rw,nosuid shared:9 - cgroup cgroup rw,{name}\n"


class Tree:
    """A machine's `/proc` and control groups below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", MEMINFO)
        self.write("proc/self/cgroup", "")
        self.write("proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def v2(self, group: str, mounted: str = "/") -> None:
        self.write("proc/self/cgroup", f"0::{group}\n")
        self.write("proc/self/mountinfo", V2_MOUNT.format(mounted=mounted))
        (self.root / "sys/fs/cgroup" / group.strip("/")).mkdir(parents=True, exist_ok=True)

    def v1(self, group: str, mounted: str = "/") -> None:
        self.write("proc/self/cgroup", f"7:memory:{group}\n4:cpu,cpuacct:{group}\n1:name=systemd:/init.scope\n")
        mounts = V1_MOUNT.format(mounted=mounted, name="memory") + V1_MOUNT.format(mounted=mounted, name="cpu,cpuacct")
        self.write("proc/self/mountinfo", mounts)

    def v2_memory(
        self, group: str, limit: str, current: int = 0, active: int = 0, inactive: int = 0, **more: str
    ) -> None:
        folder = f"sys/fs/cgroup{group}"
        self.write(f"{folder}/memory.max", f"{limit}\n")
        self.write(f"{folder}/memory.current", f"{current}\n")
        # `file` holds shared memory as well, such as an object store, which cannot be dropped.
        stat = f"anon 5\nfile {active + inactive + GIB}\nshmem {GIB}\n"
        self.write(f"{folder}/memory.stat", f"{stat}active_file {active}\ninactive_file {inactive}\n")
        for name, text in more.items():
            self.write(f"{folder}/memory.{name}", text)

    def v1_memory(self, group: str, limit: int, usage: int = 0, cache: int = 0, least: int = UNLIMITED_V1) -> None:
        folder = f"sys/fs/cgroup/memory{group}"
        self.write(f"{folder}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{folder}/memory.usage_in_bytes", f"{usage}\n")
        stat = f"hierarchical_memory_limit {least}\nactive_file 0\ninactive_file 0\n"
        self.write(
            f"{folder}/memory.stat", f"{stat}total_active_file {cache // 4}\ntotal_inactive_file {cache * 3 // 4}\n"
        )


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_without_limits_page_cache_counts_as_available(tree: Tree) -> None:
    """1 GiB is free; the kernel says that 40 GiB can be had."""
    assert available_bytes(tree.root) == 40 * GIB
    tree.v2("/user.slice")
    tree.v2_memory("/user.slice", "max", current=60 * GIB)
    assert available_bytes(tree.root) == 40 * GIB


@pytest.mark.parametrize(
    ("usage", "active", "inactive", "room"),
    [
        (0, 0, 0, 8),
        (7, 0, 0, 1),
        (7, 2, 3, 6),  # five of the seven are page cache
        (9, 1, 0, 0),  # it is above its limit
    ],
)
def test_a_group_leaves_what_is_below_its_limit_page_cache_included(
    tree: Tree, usage: int, active: int, inactive: int, room: int
) -> None:
    tree.v2("/pod")
    tree.v2_memory("/pod", str(8 * GIB), usage * GIB, active * GIB, inactive * GIB)
    assert available_bytes(tree.root) == room * GIB
    cache = active + inactive
    tree.v1("/pod")
    tree.v1_memory("/pod", 8 * GIB, usage * GIB, cache * GIB)
    assert available_bytes(tree.root) == room * GIB


def test_the_tightest_group_above_counts(tree: Tree) -> None:
    """The container may take 30 GiB, its pod 10, of which a neighbour has 6."""
    tree.v2("/kubepods/pod7/main")
    tree.v2_memory("/kubepods", "max", current=50 * GIB)
    tree.v2_memory("/kubepods/pod7", str(10 * GIB), current=7 * GIB)
    tree.v2_memory("/kubepods/pod7/main", str(30 * GIB), current=GIB)
    assert available_bytes(tree.root) == 3 * GIB
    tree.v1("/kubepods/pod7/main")
    tree.v1_memory("/kubepods", UNLIMITED_V1, 50 * GIB)
    tree.v1_memory("/kubepods/pod7", 10 * GIB, 7 * GIB)
    tree.v1_memory("/kubepods/pod7/main", 30 * GIB, GIB)
    assert available_bytes(tree.root) == 3 * GIB


def test_where_the_kernel_begins_to_slow_down_is_a_limit(tree: Tree) -> None:
    tree.v2("/service")
    tree.v2_memory("/service", str(20 * GIB), current=2 * GIB, high=f"{6 * GIB}\n")
    assert available_bytes(tree.root) == 4 * GIB


@pytest.mark.parametrize("mounted", ["/docker/4f2a", "/"])
def test_inside_a_container_its_own_group_is_the_mount(tree: Tree, mounted: str) -> None:
    """`/proc/self/cgroup` tells the host's path, or one outside of what is mounted; the mount is the container's."""
    tree.v1("/docker/4f2a" if mounted != "/" else "/../4f2a", mounted)
    tree.v1_memory("", 6 * GIB, 2 * GIB)
    tree.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n")
    tree.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert available_bytes(tree.root) == 4 * GIB
    assert usable_cpus(tree.root) == 0.5
    tree.v2("/docker/4f2a" if mounted != "/" else "/../4f2a", mounted)
    tree.v2_memory("", str(5 * GIB), 2 * GIB)
    assert available_bytes(tree.root) == 3 * GIB


def test_limits_of_groups_that_are_not_visible_are_told_by_version_1(tree: Tree) -> None:
    tree.v1("/docker/4f2a", "/docker/4f2a")
    tree.v1_memory("", UNLIMITED_V1, GIB, least=4 * GIB)
    assert available_bytes(tree.root) == 3 * GIB


def test_both_versions_side_by_side(tree: Tree) -> None:
    """As systemd's hybrid mode has it: version 2 for names alone, memory and CPUs governed by version 1."""
    tree.v1("/job")
    tree.write("proc/self/cgroup", (tree.root / "proc/self/cgroup").read_text() + "0::/init.scope\n")
    hybrid = V2_MOUNT.format(mounted="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    tree.write("proc/self/mountinfo", hybrid + (tree.root / "proc/self/mountinfo").read_text())
    (tree.root / "sys/fs/cgroup/unified/init.scope").mkdir(parents=True)
    tree.v1_memory("/job", 3 * GIB, GIB)
    assert available_bytes(tree.root) == 2 * GIB


def test_mounts_with_spaces_in_their_names(tree: Tree) -> None:
    tree.v2("/a b")
    tree.write("proc/self/mountinfo", "35 24 0:30 / /c\\040d rw - cgroup2 cgroup2 rw\n")
    tree.write("c d/a b/memory.max", f"{2 * GIB}\n")
    tree.write("c d/a b/memory.current", f"{GIB}\n")
    assert available_bytes(tree.root) == GIB


@pytest.mark.parametrize(
    ("outer", "inner", "cpus"),
    [
        ("max 100000", "max 100000", 16),
        ("max 100000", "250000 100000", 2.5),
        ("400000 100000", "800000 100000", 4),
        ("9000000 100000", "max 100000", 16),  # more than the affinity has
    ],
)
def test_cpus_are_those_of_affinity_and_quotas(
    tree: Tree, outer: str, inner: str, cpus: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    tree.v2("/pod/main")
    tree.write("sys/fs/cgroup/pod/cpu.max", outer + "\n")
    tree.write("sys/fs/cgroup/pod/main/cpu.max", inner + "\n")
    assert usable_cpus(tree.root) == cpus
    tree.v1("/pod/main")
    for group, text in (("pod", outer), ("pod/main", inner)):
        quota, period = text.replace("max", "-1").split()
        tree.write(f"sys/fs/cgroup/cpu,cpuacct/{group}/cpu.cfs_quota_us", quota + "\n")
        tree.write(f"sys/fs/cgroup/cpu,cpuacct/{group}/cpu.cfs_period_us", period + "\n")
    assert usable_cpus(tree.root) == cpus


def test_this_machine_has_what_its_kernel_says() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_bytes() <= total
    assert 0 < usable_cpus() <= len(os.sched_getaffinity(0))


@pytest.fixture
def limited_group() -> Iterator[Path]:
    """A control group of 512 MiB below this process's own; made where the machine lets us."""
    for group in host._groups(Path("/"), "memory"):
        folder = group.path / f"ray-job-{uuid.uuid4().hex[:8]}"
        limit = folder / ("memory.max" if group.is_v2 else "memory.limit_in_bytes")
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            limit.write_text(str(512 * 2**20))
        except OSError:
            folder.rmdir()
            continue
        yield folder
        folder.rmdir()
        return
    pytest.skip("no control group can be made here")


def test_a_real_group_limits_what_a_process_plans_with(limited_group: Path) -> None:
    code = (
        "import os, pathlib, sys, tempfile; pathlib.Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()))\n"
        "from ray_job.engine.host import available_bytes\n"
        "first = available_bytes()\n"
        "file = tempfile.TemporaryFile(dir='/var/tmp'); file.write(bytes(200 * 2**20))\n"
        "file.flush(); os.fsync(file.fileno())\n"
        "cached = available_bytes()\n"
        "held = b'x' * (100 * 2**20)\n"
        "print(first, cached, available_bytes())"
    )
    text = subprocess.run(
        [sys.executable, "-c", code, str(limited_group)], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    first, cached, held = (int(word) / 2**20 for word in text.split())
    assert 300 < first <= 512
    assert abs(first - cached) < 60, "200 MiB of page cache count as available"
    assert 80 < cached - held < 160, "100 MiB that are held do not"
