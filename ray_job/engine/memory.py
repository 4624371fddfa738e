"""How many tokens of keys and values fit in memory, and what running out of it looks like."""

from __future__ import annotations

import gc

import torch

from ray_job.engine.host import available_bytes
from ray_job.engine.packed_model import PackedModel

_CPU_SHARE, _GPU_SHARE = 0.25, 0.8
# What allocators other than CUDA's say in a plain RuntimeError.
_PHRASES = ("can't allocate memory", "defaultcpuallocator", "out of memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an operation failed only because memory was short."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in _PHRASES)


def is_fatal(error: BaseException) -> bool:
    """Whether the device is lost: no row is to blame, and none can be run any more."""
    return isinstance(error, torch.AcceleratorError)


def release_memory(device: torch.device) -> None:
    """Returns memory that nothing refers to any more to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def pool_tokens(model: PackedModel, free_bytes: int, least_tokens: int) -> int:
    """Tokens of a KV pool that takes its share of the free memory: a quarter of a CPU's, 80 % of a GPU's.

    Args:
        model: whose keys and values they are.
        free_bytes: what the model's weights leave of the memory it may use; may be below 0.
        least_tokens: the pool holds so many in any case, or the longest row that the model can run.
    """
    bytes_per_token = 2 * sum(layer.num_heads * layer.head_dim for layer in model.layers) * model.dtype.itemsize
    share = _GPU_SHARE if model.device.type == "cuda" else _CPU_SHARE
    return max(min(least_tokens, model.max_len), int(share * free_bytes) // bytes_per_token)


def free_bytes(device: torch.device, gpu_share: float = 1.0) -> int:
    """What is left for this process on the device, now.

    Args:
        device: a CPU's memory is what the machine and the control groups leave; a GPU's what it says itself.
        gpu_share: of one GPU, where several processes share it.
    """
    if device.type != "cuda":
        return available_bytes()
    free, total = torch.cuda.mem_get_info(device)
    return min(free, int(gpu_share * total) - torch.cuda.memory_reserved(device))
