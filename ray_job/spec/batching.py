"""How rows are grouped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ray_job.spec.section import Section
from ray_job.spec.vllm_options import check_option, options_of_answers


class BatchingSpec(Section):
    """How rows are grouped on their way through the job."""

    block_rows: int = Field(32, ge=1, le=4096, description="Rows sent to an actor together.")
    blocks_per_actor: int = Field(4, ge=1, le=64, description="Blocks an actor works on at the same time.")
    engine: Literal["auto", "continuous", "static", "vllm"] = Field(
        "auto",
        description="`continuous`: the next row starts as soon as one is finished. `static`: padded batches, each of "
        "which runs until its last row is finished; the simple reference, with the same answers. `auto`: `continuous` "
        "where the model fits it, else `static`, and the report says why. `vllm`: vLLM's engine, for what it serves "
        "and these do not, such as models over several GPUs (the extra `ray_job[vllm]`).",
    )
    engine_options: dict[str, Any] = Field(
        {},
        description="Only for vLLM: further arguments of its engine by their names in `EngineArgs`, such as "
        "`quantization`, `max_model_len` or `gpu_memory_utilization`.",
    )
    max_batch_rows: int = Field(32, ge=1, le=1024, description="Maximum number of rows generated together.")
    max_batch_tokens: int | None = Field(
        None,
        ge=64,
        description="Maximum number of tokens held at once, prompts and answers. Default: what memory allows "
        "(static: 65,536, padding included). Not for vLLM, which counts in bytes.",
    )
    step_tokens: int = Field(
        1024,
        ge=16,
        description="Maximum number of tokens the continuous engine computes in one step. vLLM has a default of its "
        "own, which this replaces where it is set.",
    )
    vision_cache_mib: int = Field(
        256,
        ge=0,
        description="Memory for picture features kept for rows that show the same picture again, in MiB; with vLLM for "
        "processed pictures.",
    )
    share_prefixes: bool = Field(
        True,
        description="Compute the beginning that several prompts share only once. In float32 the answers are the same; "
        "in 16 bits sums over shared keys are rounded differently, which may tip a near tie.",
    )
    padding_side: Literal["left", "right"] = Field(
        "left", description="Only for Phi-3-Vision in the static engine; the answers are the same."
    )

    @field_validator("engine_options", mode="after")
    @classmethod
    def _not_decided_elsewhere(cls, options: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in options:
            check_option(name)
        return options

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        if self.engine != "static" and self.padding_side != "left":
            raise ValueError(f"padding_side: the {self.engine} engine pads nothing; leave it out or set engine: static")
        if self.engine != "vllm" and self.engine_options:
            raise ValueError(f"engine_options: the {self.engine} engine takes none; leave them out or set engine: vllm")
        if self.engine == "vllm" and self.max_batch_tokens is not None:
            raise ValueError(
                "max_batch_tokens: vLLM fills the memory it may use; leave it out or set kv_cache_memory_bytes or "
                "gpu_memory_utilization in engine_options"
            )
        return self

    def answer_fields(self) -> dict[str, Any]:
        """What of it can change an answer: nothing, unless another engine answers."""
        if self.engine != "vllm":
            return {}
        return {"engine": self.engine, "engine_options": options_of_answers(self.engine_options)}
