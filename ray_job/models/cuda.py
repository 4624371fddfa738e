"""Whether torch can compute on this machine's GPU, and what to say where it cannot."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ray_job.errors import ModelError, first_line

_PROC, _SMI = "proc/driver/nvidia/version", "nvidia-smi"
_SMI_S = 20.0


@dataclass(frozen=True, slots=True)
class Cuda:
    """What torch and the GPU's driver say of themselves."""

    is_usable: bool
    torch: str  # its version
    built_for: str | None  # the CUDA that this torch was built for; None: it was built without
    driver: str | None  # version of NVIDIA's driver, where one is found
    reason: str = ""  # why torch cannot use it, in torch's words

    @classmethod
    def find(cls) -> Self:
        """Of this process."""
        import torch

        usable = is_usable()
        reason = "" if usable else _reason()
        return cls(usable, torch.__version__, torch.version.cuda, driver_version(), reason)

    def error(self, reason: str = "") -> ModelError:
        """For an actor that cannot have the GPU it is to compute on: names torch's CUDA, the driver, and what to do.

        Args:
            reason: why it cannot, where only using CUDA has shown that.
        """
        built_for = f"is built for CUDA {self.built_for}" if self.built_for else "is built without CUDA"
        driver = f"is {self.driver}" if self.driver else "was not found"
        return ModelError(
            f"the actor is to compute on a GPU, and torch cannot use one: {reason or self.reason}. torch {self.torch} "
            f"{built_for}; the NVIDIA driver {driver}. Install a torch whose CUDA the driver supports, or a newer "
            "driver; to compute on CPUs instead, set workers.gpus_per_actor: 0"
        )


def is_usable() -> bool:
    """Whether torch finds a GPU and a driver that fits it."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `Cuda.find` asks for the reason
        return torch.cuda.is_available()


def has_gpu(root: Path = Path("/")) -> bool:
    """Whether an NVIDIA GPU's device file is here and not hidden, whatever torch can do with it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any(re.fullmatch(r"nvidia\d+", path.name) for path in (root / "dev").glob("nvidia*"))


def driver_version(root: Path = Path("/")) -> str | None:
    """Version of NVIDIA's driver: what its kernel module says, or else `nvidia-smi`; None where there is neither."""
    try:
        text = (root / _PROC).read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = _smi("driver_version")
    found = re.search(r"\b\d{3,}\.\d+(?:\.\d+)?\b", text)
    return found[0] if found else None


def gpu_bytes() -> int:
    """Memory of this machine's smallest GPU, by `nvidia-smi`; 0 where that does not tell."""
    return min((int(number) for number in re.findall(r"^\d+$", _smi("memory.total"), re.MULTILINE)), default=0) * 2**20


def _smi(query: str) -> str:
    program = shutil.which(_SMI)
    if program is None:
        return ""
    command = [program, f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SMI_S).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _reason() -> str:
    """What torch says when it is made to use CUDA."""
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return first_line(error).rstrip(".")
    return "torch.cuda.is_available() is false"
