"""Who does the work."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ray_job.spec.section import Section


class WorkersSpec(Section):
    """Who does the work."""

    min_actors: int = Field(1, ge=1, description="Actors holding the model that are always there.")
    max_actors: int | None = Field(None, ge=1, description="Default: min_actors (a fixed pool).")
    gpus_per_actor: float | Literal["auto"] = Field(
        "auto",
        description="GPUs an actor takes; a fraction shares one, memory included. `auto`: 1 where the cluster has "
        "GPUs, else 0. With 0 it computes on CPUs, whatever GPUs there are; with more, a GPU that torch cannot use "
        "is an error. A model lies on one GPU whole: there is no tensor parallelism.",
    )
    cpus_per_actor: float = Field(
        0.0,
        ge=0,
        description="CPUs reserved per actor, and the most threads it computes with. 0 reserves none, so that reading "
        "and preparing share them with it.",
    )
    prepare_tasks: int | None = Field(None, ge=1, description="Most preparing tasks at once. Default: Ray decides.")
    threads: int | None = Field(
        None,
        ge=1,
        description="Threads an actor computes with. Default: cpus_per_actor; where that is 0, the CPUs of its "
        "machine (those its cgroup allows) divided by the actors that a full pool puts there.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_actors is not None and self.max_actors < self.min_actors:
            raise ValueError(f"max_actors ({self.max_actors}) is below min_actors ({self.min_actors})")
        gpus = self.gpus_per_actor
        if gpus != "auto" and not 0 <= gpus <= 1:
            raise ValueError(
                f"gpus_per_actor: got {gpus}; allowed: 0 to 1, since a model lies on one GPU whole; raise min_actors "
                "to use several"
            )
        return self
