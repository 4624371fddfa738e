"""Which model answers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, JsonValue, model_validator

from ray_job.spec.section import Section


class ModelSpec(Section):
    """Which model answers, where and in which precision."""

    path: str = Field(
        "builtin:demo",
        description="Folder with config.json, tokenizer.json and *.safetensors; the URI of such a folder in a bucket, "
        "downloaded once per machine; a Hugging Face Hub id with `revision`; `builtin:demo` (the small model in this "
        "package); `builtin:demo-llava-next` (another one, of the library's LLaVA-NeXT architecture); `builtin:noop` "
        "(answers nothing, for measuring).",
    )
    revision: str | None = Field(None, description="Commit of a hub id (40 hex digits); required with a hub id.")
    adapter: str | None = Field(
        None,
        description="A fine-tune that peft saved (LoRA and its kin), put into the weights when they are loaded: folder "
        "with adapter_config.json and adapter_model.safetensors; the URI of such a folder in a bucket; a Hugging Face "
        "Hub id with `adapter_revision`. Needs the extra `ray_job[peft]` where actors run.",
    )
    adapter_revision: str | None = Field(
        None, description="Commit of the adapter's hub id (40 hex digits); required with a hub id."
    )
    quantization: Literal["int8", "fp8"] | None = Field(
        None,
        description="Rounds the weights of the decoder's layers to 8 bits when they are loaded: less memory, slightly "
        "different answers. `int8` is the more exact one; `fp8` is slow on a CPU. Embeddings, head and vision tower "
        "stay as they are. Needs the extra `ray_job[quantization]` where actors run. Default: all weights in `dtype`.",
    )
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
    attention: Literal["sdpa", "eager"] = Field(
        "sdpa",
        description="How attention is computed where the continuous engine does not do it itself: in the vision tower, "
        "and in static batches. `sdpa`: by torch's fused function. `eager`: by plain products of matrices.",
    )
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

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        if self.adapter is None and self.adapter_revision is not None:
            raise ValueError("adapter_revision: there is no adapter; set adapter to its hub id, or leave both out")
        changes = [name for name in ("adapter", "quantization") if getattr(self, name) is not None]
        if changes and self.path == "builtin:noop":
            raise ValueError(f"{changes[0]}: builtin:noop has no weights; leave {changes[0]} out or set another path")
        if self.quantization == "int8" and self.dtype == "float16":
            raise ValueError(
                "quantization: int8 multiplies before it scales, and the products can exceed what float16 holds; set "
                "dtype to bfloat16 or float32"
            )
        return self
