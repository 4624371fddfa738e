"""How much memory there is, and what running out of it looks like."""

from __future__ import annotations

import gc
import os

import torch

from ray_job.engine.packed_model import PackedModel

_CPU_SHARE, _GPU_SHARE = 0.25, 0.8
_FEWEST_POOL_TOKENS = 1024
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
    """Gives what nobody holds back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def default_pool_tokens(model: PackedModel) -> int:
    """Tokens of a KV pool that takes a quarter of a CPU's free memory or 80 % of a GPU's."""
    bytes_per_token = 2 * model.num_layers * model.num_heads * model.head_dim * model.dtype.itemsize
    if model.device.type == "cuda":
        share = _GPU_SHARE * torch.cuda.mem_get_info(model.device)[0]
    else:
        share = _CPU_SHARE * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(_FEWEST_POOL_TOKENS, int(share) // bytes_per_token)
