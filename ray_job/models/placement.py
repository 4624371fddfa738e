"""Where an actor computes: device, dtype, threads and memory, decided once from the spec and the actor's machine.

The driver decides device and dtype for all actors; threads and memory follow from the machine that an actor starts on.
The manifest holds what was decided, and whoever loads a model obeys its placement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ray_job.engine.host import available_bytes, usable_cpus
from ray_job.spec import JobSpec, ModelSpec, WorkersSpec

Device: TypeAlias = Literal["cpu", "cuda"]
Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]

_ROUNDING = 1e-6  # Ray's sums of fractions are not exact


@dataclass(frozen=True, slots=True)
class Machine:
    """What an actor finds on its machine, and shares with the job's other actors there."""

    cpus: float
    available_bytes: int  # of memory, now
    first_bytes: int  # the same before any of these actors took some
    num_actors: int = 1

    @classmethod
    def here(cls) -> Machine:
        """This process's own, as if no other actor were on it."""
        available = available_bytes()
        return cls(usable_cpus(), available, available)

    @property
    def bytes_per_actor(self) -> int:
        """An actor's part of the memory, which does not depend on how many of its neighbours are there already."""
        return min(self.available_bytes, self.first_bytes // self.num_actors)


@dataclass(frozen=True, slots=True)
class Placement:
    """What one actor computes with."""

    device: Device
    dtype: Dtype  # the weights'
    threads: int
    memory_bytes: int  # of the machine's memory, for weights, keys and all else
    gpu_share: float = 0.0  # of one GPU; above 1 so many GPUs, over which vLLM splits a model

    @classmethod
    def local(cls, spec: JobSpec) -> Placement:
        """The placement of an actor that lives in this process and has the machine for itself."""
        machine, gpus = Machine.here(), _local_gpus(spec)
        device = settle_device(gpus)
        dtype, threads = settle_dtype(spec.model, device), settle_threads(spec.workers, machine)
        return cls(device, dtype, threads, machine.bytes_per_actor, gpus)


def settle_device(gpus_per_actor: float) -> Device:
    """Where an actor computes. One without a GPU leaves CUDA alone, even where it could see GPUs: they are others'."""
    return "cuda" if gpus_per_actor > 0 else "cpu"


def settle_dtype(model: ModelSpec, device: Device) -> Dtype:
    """The weights' dtype: `model.dtype`, or what the device computes fast in."""
    if model.dtype != "auto":
        return model.dtype
    return "bfloat16" if device == "cuda" else "float32"


def settle_threads(workers: WorkersSpec, machine: Machine) -> int:
    """Threads of an actor: `workers.threads`, or else its part of the machine's CPUs, at most those it reserves."""
    if workers.threads is not None:
        return workers.threads
    part = machine.cpus / machine.num_actors
    return max(1, int(min(part, workers.cpus_per_actor or part) + _ROUNDING))


def _local_gpus(spec: JobSpec) -> float:
    """GPUs of an actor in this process. Where there is one that torch cannot use, it is asked for all the same: loading
    then says why, and does not go on with a CPU."""
    from ray_job.models.cuda import has_gpu, is_usable

    asked = spec.workers.gpus_per_actor
    if asked != "auto":
        return asked
    if spec.model.device == "auto":
        return 1.0 if has_gpu() or is_usable() else 0.0
    return 1.0 if spec.model.device == "cuda" else 0.0
