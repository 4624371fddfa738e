"""What computes the answers: actors, GPUs, CPUs and threads."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ray_job.spec.section import Section


class WorkersSpec(Section):
    """What computes the answers."""

    min_actors: int = Field(1, ge=1, description="Number of actors that hold the model from start to end.")
    max_actors: int | None = Field(
        None,
        ge=1,
        description="Up to this many actors are started while rows wait. Default: min_actors (a fixed pool).",
    )
    gpus_per_actor: float | Literal["auto"] = Field(
        "auto",
        description="GPUs per actor; a fraction shares one GPU and its memory. `auto`: 1 where the cluster has GPUs, "
        "otherwise 0. With 0 the actor computes on CPUs even if there are GPUs; above 0, a GPU that torch cannot use "
        "is an error. With `batching.engine: vllm` it may be a whole number above 1: the model is then split over so "
        "many GPUs of one machine. Otherwise the whole model lies on one GPU.",
    )
    cpus_per_actor: float = Field(
        0.0,
        ge=0,
        description="CPUs reserved per actor, which is also its maximum number of threads. 0 reserves none: reading "
        "and preparing then share the CPUs with it.",
    )
    prepare_tasks: int | None = Field(
        None, ge=1, description="Maximum number of preparing tasks at the same time. Default: Ray decides."
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="Threads an actor computes with. Default: cpus_per_actor; if that is 0, the CPUs of its machine "
        "(as far as its cgroup allows) divided by the number of actors that a full pool puts there.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_actors is not None and self.max_actors < self.min_actors:
            raise ValueError(f"max_actors ({self.max_actors}) is below min_actors ({self.min_actors})")
        gpus = self.gpus_per_actor
        if gpus != "auto" and not (0 <= gpus <= 1 or gpus == int(gpus) > 1):
            raise ValueError(f"gpus_per_actor: got {gpus}; allowed: 0 to 1, and with batching.engine: vllm 2, 3, …")
        return self
