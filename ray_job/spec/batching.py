"""How rows are grouped."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ray_job.spec.section import Section


class BatchingSpec(Section):
    """How rows are grouped on their way through the job."""

    block_rows: int = Field(32, ge=1, le=4096, description="Rows sent to an actor together.")
    blocks_per_actor: int = Field(4, ge=1, le=64, description="Blocks an actor works on at the same time.")
    engine: Literal["auto", "continuous", "static"] = Field(
        "auto",
        description="`continuous`: the next row starts as soon as one is finished. `static`: padded batches, each of "
        "which runs until its last row is finished; the simple reference, with the same answers. `auto`: `continuous` "
        "where the model fits it, else `static`, and the report says why.",
    )
    max_batch_rows: int = Field(32, ge=1, le=1024, description="Maximum number of rows generated together.")
    max_batch_tokens: int | None = Field(
        None,
        ge=64,
        description="Maximum number of tokens held at once, prompts and answers. Default: what memory allows "
        "(static: 65,536, padding included).",
    )
    step_tokens: int = Field(
        1024, ge=16, description="Maximum number of tokens the continuous engine computes in one step."
    )
    vision_cache_mib: int = Field(
        256, ge=0, description="Memory for picture features kept for rows that show the same picture again, in MiB."
    )
    share_prefixes: bool = Field(
        True,
        description="Compute the beginning that several prompts share only once. In float32 the answers are the same; "
        "in 16 bits sums over shared keys are rounded differently, which may tip a near tie.",
    )
    padding_side: Literal["left", "right"] = Field(
        "left", description="Only for Phi-3-Vision in the static engine; the answers are the same."
    )

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        if self.engine != "static" and self.padding_side != "left":
            raise ValueError("padding_side: the continuous engine pads nothing; leave it out or set engine: static")
        return self
