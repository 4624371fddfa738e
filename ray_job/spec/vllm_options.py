"""Which arguments of vLLM's engine a job may give it: those that no other field decides. Knows names alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Another field decides them.
_DECIDED = {
    "model": "model.path",
    "model_weights": "model.path",
    "revision": "model.revision",
    "dtype": "model.dtype",
    "max_num_seqs": "batching.max_batch_rows",
    "max_num_batched_tokens": "batching.step_tokens",
    "enable_prefix_caching": "batching.share_prefixes",
    "mm_processor_cache_gb": "batching.vision_cache_mib",
    "limit_mm_per_prompt": "limits.max_images",
    "mm_processor_kwargs": "model.processor_options",
    "structured_outputs_config": "generation.structured_outputs",
}
# Not to be had, and why.
_REFUSED = {
    "trust_remote_code": "code from a model's folder is never run",
    "hf_token": "a job's description holds no secrets; a hub id is downloaded before vLLM starts",
    "allowed_local_media_path": "pictures are read by ray_job, by the rules of input.pictures",
    "allowed_media_domains": "pictures are read by ray_job, by the rules of input.pictures",
    **dict.fromkeys(
        ("tokenizer", "skip_tokenizer_init", "tokenizer_mode", "generation_config", "override_generation_config"),
        "prompts and answers are encoded by ray_job, so that they mean the same with every engine",
    ),
    **dict.fromkeys(
        ("worker_cls", "worker_extension_cls", "scheduler_cls", "logits_processors", "io_processor_plugin"),
        "code is not named in a job's description",
    ),
    **dict.fromkeys(
        ("distributed_executor_backend", "nnodes", "node_rank", "master_addr", "data_parallel_size"),
        "an actor and its GPUs stand on one machine; raise workers.min_actors to use more machines",
    ),
    "stream_interval": "each token is looked at, for stop strings",
}
# Options that say how fast or in how much memory rows are answered.
_WITHOUT_EFFECT_ON_ANSWERS = frozenset(
    {
        "cpu_offload_gb",
        "disable_custom_all_reduce",
        "distributed_timeout_seconds",
        "enforce_eager",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "max_parallel_loading_workers",
        "num_gpu_blocks_override",
        "pipeline_parallel_size",
        "tensor_parallel_size",
        "use_tqdm_on_load",
    }
)


def check_option(name: str) -> None:
    """Raises ValueError for an option that is not the job's to give. Whether vLLM knows it, only vLLM can tell."""
    if name in _DECIDED:
        raise ValueError(f"{name}: set {_DECIDED[name]} instead")
    if name in _REFUSED:
        raise ValueError(f"{name}: {_REFUSED[name]}; leave it out")


def options_of_answers(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that may change an answer, by name."""
    return {name: options[name] for name in sorted(options) if name not in _WITHOUT_EFFECT_ON_ANSWERS}
