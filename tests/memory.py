"""How much memory a process has held at most, from the kernel (Linux).

Not `ru_maxrss`: it never falls, so that after a larger test it cannot fail, and a child begins with its parent's.
"""

from __future__ import annotations

from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_mib() -> float:
    """Most memory this process has held since it began, or since `forget_peak`."""
    return _field("VmHWM")


def now_mib() -> float:
    """What it holds now."""
    return _field("VmRSS")


def forget_peak() -> None:
    """From here on the peak counts anew."""
    _CLEAR.write_text("5")


def _field(name: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024
