"""What vLLM's engine is told: a job and its actor's placement as arguments of `vllm.EngineArgs`. Imports no vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_job.errors import ModelError
from ray_job.models.placement import Placement
from ray_job.models.vllm.forms import BACKEND
from ray_job.spec import JobSpec

_CPU_SHARE, _GPU_SHARE = 0.25, 0.9  # of the memory that weights leave, and of a GPU's whole
_AUTO_LEN = -1  # the longest that memory allows


def engine_arguments(
    spec: JobSpec, placement: Placement, folder: Path, model: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The arguments by name; `batching.engine_options` on top.

    Args:
        spec: the job's.
        placement: of the actor.
        folder: of the checkpoint.
        model: further arguments that the model needs.

    Raises:
        ModelError: the GPUs cannot be shared out as the options ask.
    """
    batching, options = spec.batching, spec.batching.engine_options
    arguments: dict[str, Any] = {
        "model": str(folder),
        "served_model_name": "model",
        "dtype": placement.dtype,
        "seed": 0,
        "max_model_len": _AUTO_LEN,
        "max_num_seqs": batching.max_batch_rows,
        "enable_prefix_caching": batching.share_prefixes,
        "mm_processor_cache_gb": batching.vision_cache_mib / 1024,
        "limit_mm_per_prompt": {"image": spec.limits.max_images, "video": 0, "audio": 0},
        "load_format": "safetensors",  # no pickles
        "generation_config": "vllm",  # nothing beside the job's own parameters
        "structured_outputs_config": {"backend": BACKEND},
        "disable_log_stats": True,
        **({"mm_processor_kwargs": spec.model.processor_options} if spec.model.processor_options else {}),
        **_memory(placement, folder),
        **(model or {}),
        **options,
        **_processes(placement, options),
    }
    if "step_tokens" in batching.model_fields_set:
        arguments["max_num_batched_tokens"] = batching.step_tokens
    return arguments


def _memory(placement: Placement, folder: Path) -> dict[str, Any]:
    """What of the device vLLM may take."""
    if placement.device == "cuda":
        return {"gpu_memory_utilization": _GPU_SHARE * min(1.0, placement.gpu_share)}
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    # Compiling takes a CPU minutes and has shown no gain.
    return {
        "kv_cache_memory_bytes": int(_CPU_SHARE * max(0, placement.memory_bytes - weights)),
        "enforce_eager": True,
    }


def _processes(placement: Placement, options: Mapping[str, Any]) -> dict[str, Any]:
    """How the model is split, and who computes: the actor's own process, or one of vLLM's for each part."""
    stages = int(options.get("pipeline_parallel_size", 1))
    if placement.device == "cpu":
        parts = int(options.get("tensor_parallel_size", 1))
    else:
        gpus = max(1, int(placement.gpu_share))
        parts = int(options.get("tensor_parallel_size", gpus // max(1, stages)))
        if parts * stages != gpus:
            raise ModelError(
                f"batching.engine_options: {parts} × {stages} parts of the model for {gpus} GPUs; set "
                "workers.gpus_per_actor to tensor_parallel_size × pipeline_parallel_size"
            )
    return {"tensor_parallel_size": parts, "distributed_executor_backend": "uni" if parts * stages == 1 else "mp"}
