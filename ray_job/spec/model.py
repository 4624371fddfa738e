"""Which model answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from ray_job.spec.section import Section


class ModelSpec(Section):
    """Which model answers, where and in which precision."""

    path: str = Field(
        "builtin:demo",
        description="Folder with config.json, tokenizer.json and *.safetensors; the URI of such a folder in a bucket, "
        "downloaded once per machine; a Hugging Face Hub id with `revision`; `builtin:demo` (the small model in this "
        "package); `builtin:noop` (answers nothing, for measuring).",
    )
    revision: str | None = Field(None, description="Commit of a hub id (40 hex digits); required with a hub id.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="`auto`: bfloat16 on a GPU, float32 on a CPU. A CPU without arithmetic for a 16-bit dtype stores "
        "the weights in it, which halves the memory, and computes in float32.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="`auto`: the GPU that `workers.gpus_per_actor` gives the actor, or the CPU if that is 0. `cuda` "
        "and `cpu` decide what `auto` means there, and must not contradict a number.",
    )
    attention: Literal["sdpa", "eager"] = "sdpa"
    num_crops: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Maximum number of local crops a picture is cut into, of Phi-3-Vision. Default: the model's own.",
    )
    processor_options: dict[str, JsonValue] = Field(
        {},
        description="Of another model's image processor, by the names of its configuration, such as "
        "{max_pixels: 1003520} for Qwen2.5-VL or {do_image_splitting: false} for SmolVLM. Default: the model's own.",
    )
