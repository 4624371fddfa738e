"""Whether weights and one row fit into the memory of the device that a job would compute on, from headers alone.

A job that is started here computes here, unless it joins a cluster, of whose devices nothing is known before. What is
found is an estimate, so it is said and not enforced: whoever loads the model finds out.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_job.errors import ModelError
from ray_job.models.cuda import gpu_bytes, has_gpu
from ray_job.models.json_file import read_json_object
from ray_job.models.loading import NOOP, load_processor, model_folder
from ray_job.models.placement import Device, Machine, settle_device, settle_dtype
from ray_job.models.processor import Processor
from ray_job.models.safetensors_files import PLAIN_DTYPES, weight_files
from ray_job.redaction.logs import logger_of
from ray_job.spec import JobSpec

TEXT_TOKENS = 1024  # room for what stands beside a picture
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_GPU_SHARE = 0.9  # of a GPU's memory; the rest is for what a step computes
_MAX_HEADER_BYTES = 100_000_000  # by the format of safetensors
_GIB = 2**30
_LOG = logger_of(__name__)


def warn_of_shortage(spec: JobSpec) -> None:
    """Logs it."""
    if (text := shortage(spec)) is not None:
        _LOG.warning("%s", text)


def shortage(spec: JobSpec) -> str | None:
    """What to say where they do not fit; None where they do, or the device is not known. The weights must be here."""
    if os.environ.get("RAY_ADDRESS") or spec.model.path == NOOP:
        return None
    folder, processor = model_folder(spec.model), load_processor(spec.model)
    gpus = _gpus(spec)
    device = settle_device(gpus)
    one = gpu_bytes() if device == "cuda" else Machine.here().available_bytes // spec.workers.min_actors
    weights = weight_bytes(spec, folder, device)
    if not one or not weights:
        return None
    row = _row_bytes(spec, folder, processor, device)
    room = int(_GPU_SHARE * gpus * one) if device == "cuda" else one
    if weights + row <= room:
        return None
    found = f"{_GPU_SHARE:.0%} of {gpus:g} GPU" if device == "cuda" else "an actor's part of this machine's memory"
    if device == "cuda":
        least = max(2, math.ceil((weights + row) / (_GPU_SHARE * one)))
        advice = (
            f"set batching.engine: vllm and workers.gpus_per_actor: {least}, which splits it over so many GPUs of one "
            "machine, or round its weights with model.quantization"
        )
    else:
        advice = "set model.dtype: bfloat16 or model.quantization, lower workers.min_actors, or use a larger machine"
    return (
        f"model.path: the weights take {weights / _GIB:.1f} GiB and the keys and values of one row up to "
        f"{row / _GIB:.1f} GiB; {found} is {room / _GIB:.1f} GiB. To run it, {advice}"
    )


def _gpus(spec: JobSpec) -> float:
    """Of an actor on this machine."""
    asked = spec.workers.gpus_per_actor
    if asked != "auto":
        return asked
    return 1.0 if spec.model.device == "cuda" or (spec.model.device == "auto" and has_gpu()) else 0.0


def weight_bytes(spec: JobSpec, folder: Path, device: Device) -> int:
    """What the weights take when they are loaded; 0 where the files do not tell."""
    item_bytes = _ITEM_BYTES[settle_dtype(spec.model, device)]
    num_bytes = 0
    try:
        for file in weight_files(folder):
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                tensors: Mapping[str, Any] = json.loads(stream.read(min(length, _MAX_HEADER_BYTES)))
            for name, tensor in tensors.items():
                if name != "__metadata__":
                    num_bytes += _tensor_bytes(tensor, item_bytes, bool(spec.model.quantization))
    except (ModelError, OSError, ValueError, struct.error, KeyError, TypeError):  # loading says what is wrong
        return 0
    return num_bytes


def _tensor_bytes(tensor: Mapping[str, Any], item_bytes: int, is_rounded: bool) -> int:
    if tensor["dtype"] not in PLAIN_DTYPES:
        start, stop = tensor["data_offsets"]
        return int(stop) - int(start)
    shape = tensor["shape"]
    return int(math.prod(shape)) * (1 if is_rounded and len(shape) > 1 else item_bytes)


def _row_bytes(spec: JobSpec, folder: Path, processor: Processor, device: Device) -> int:
    """Keys and values of a row with one picture of full size, a text beside it and its answer."""
    config = read_json_object(folder / "config.json")
    text = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else config
    assert text is not None
    try:
        heads = int(text["num_attention_heads"])
        head_dim = int(text.get("head_dim") or text["hidden_size"] // heads)
        layers, kv_heads = int(text["num_hidden_layers"]), int(text.get("num_key_value_heads") or heads)
    except (KeyError, TypeError, ValueError):
        return 0
    num_tokens = min(processor.max_len, processor.max_image_tokens + TEXT_TOKENS + spec.generation.max_new_tokens)
    return 2 * layers * kv_heads * head_dim * num_tokens * _ITEM_BYTES[settle_dtype(spec.model, device)]
