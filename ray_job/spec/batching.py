"""How rows are grouped."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ray_job.spec.section import Section


class BatchingSpec(Section):
    """How rows are grouped on their way through."""

    block_rows: int = Field(32, ge=1, le=4096, description="Rows that travel together to an actor.")
    blocks_per_actor: int = Field(4, ge=1, le=64, description="Blocks an actor works on at once.")
    engine: Literal["continuous", "static"] = Field(
        "continuous",
        description="`continuous`: a finished row's place is taken at once. `static`: padded batches, each run to the "
        "end of its last row; the plain reference, with the same answers.",
    )
    max_batch_rows: int = Field(32, ge=1, le=1024, description="Most rows generated together.")
    max_batch_tokens: int | None = Field(
        None,
        ge=64,
        description="Most tokens held together, prompts and answers. Default: what memory allows (static: 65,536, "
        "padding included).",
    )
    step_tokens: int = Field(1024, ge=16, description="Most tokens the continuous engine computes in one step.")
    vision_cache_mib: int = Field(256, ge=0, description="Picture features kept for rows that repeat a picture.")
    share_prefixes: bool = Field(
        True,
        description="Compute what rows' prompts have in common only once. Computed in float32 the answers are the "
        "same; in 16 bits sums over shared keys are rounded at other places, which may turn a near tie.",
    )
    padding_side: Literal["left", "right"] = Field("left", description="Of the static engine; the answers are equal.")

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.engine == "continuous" and self.padding_side != "left":
            raise ValueError("padding_side: the continuous engine pads nothing; leave it out or set engine: static")
        return self
