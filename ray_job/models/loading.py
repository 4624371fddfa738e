"""From a `model` section of the spec to a processor and an engine.

Heavy imports happen inside the functions that need them: preparing rows must not load torch.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ray_job.errors import ModelError
from ray_job.models.hub import snapshot_folder
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor
from ray_job.models.store import download_model
from ray_job.spec import JobSpec, ModelSpec
from ray_job.storage.places import parse_uri

if TYPE_CHECKING:
    from ray_job.engine.interface import Engine, Vocabulary
    from ray_job.models.phi3_vision.model import Phi3VisionModel

DEMO, NOOP = "builtin:demo", "builtin:noop"


def model_folder(model: ModelSpec, *, with_weights: bool = True) -> Path:
    """Where the model's files are on this machine; a hub id's or a bucket's are downloaded, once for all its processes.

    Raises:
        ModelError: there is no such model.
    """
    if model.path in (DEMO, NOOP):
        return Path(__file__).parent.parent / "demo" / "model"
    if parse_uri(model.path) is not None:
        return download_model(model.path, with_weights=with_weights)
    return snapshot_folder(model.path, model.revision)


def settle_model(model: ModelSpec) -> ModelSpec:
    """The same model with a local folder made absolute: workers start elsewhere."""
    is_folder = model.path not in (DEMO, NOOP) and os.path.isdir(model.path)
    return model.model_copy(update={"path": os.path.abspath(model.path)}) if is_folder else model


@functools.lru_cache(maxsize=4)
def load_processor(model: ModelSpec) -> Phi3VisionProcessor:
    """The model's processor; kept, since a worker prepares many batches."""
    return Phi3VisionProcessor.from_pretrained(model_folder(model, with_weights=False), num_crops=model.num_crops)


def load_config(model: ModelSpec) -> Phi3VisionConfig:
    """The model's configuration, without weights."""
    return Phi3VisionConfig.from_pretrained(model_folder(model, with_weights=False))


def load_model(spec: JobSpec) -> Phi3VisionModel:
    """Weights on their device, in evaluation mode.

    Raises:
        ModelError: the configuration or the weights are not right, or the GPU lacks the dtype.
    """
    import torch

    from ray_job.models.casting import cast_where_slow
    from ray_job.models.phi3_vision import weights

    device = spec.model.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(spec.workers.threads or _cpus_per_actor(spec))
    name = spec.model.dtype
    if name == "auto":
        name = "bfloat16" if device == "cuda" else "float32"
    if name == "bfloat16" and device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ModelError(f"model.dtype: {torch.cuda.get_device_name()} does not compute in bfloat16; set it to float16")
    if name == "float32":
        torch.backends.cudnn.allow_tf32 = False  # else convolutions on a GPU round to 10 bits
    model = weights.load(
        model_folder(spec.model), dtype=getattr(torch, name), device=device, attention=spec.model.attention
    )
    return cast_where_slow(model)


def load_engine(spec: JobSpec) -> Engine:
    """The engine a job's actor runs."""
    if spec.model.path == NOOP:
        from ray_job.engine.noop import NoOpEngine

        return NoOpEngine()
    from ray_job.engine.interface import Vocabulary

    processor = load_processor(spec.model)
    vocabulary = Vocabulary(processor.pad_id, frozenset(processor.stop_ids), processor.decode)
    return _make_engine(spec, load_model(spec), vocabulary)


def _make_engine(spec: JobSpec, model: Phi3VisionModel, vocabulary: Vocabulary) -> Engine:
    batching, deadline_s = spec.batching, spec.limits.row_deadline_s
    if batching.engine == "static":
        from ray_job.engine.batching import DEFAULT_MAX_TOKENS
        from ray_job.engine.static import StaticEngine

        return StaticEngine(
            model,
            vocabulary,
            max_batch_rows=batching.max_batch_rows,
            max_batch_tokens=batching.max_batch_tokens or DEFAULT_MAX_TOKENS,
            padding_side=batching.padding_side,
            row_deadline_s=deadline_s,
        )
    from ray_job.engine.continuous import ContinuousEngine
    from ray_job.models.phi3_vision.packed import PackedPhi3Vision

    return ContinuousEngine(
        PackedPhi3Vision(model),
        vocabulary,
        max_slots=batching.max_batch_rows,
        max_tokens=batching.max_batch_tokens,
        step_tokens=batching.step_tokens,
        vision_cache_bytes=batching.vision_cache_mib * 2**20,
        prefix_sharing=batching.share_prefixes,
        row_deadline_s=deadline_s,
    )


def _cpus_per_actor(spec: JobSpec) -> int:
    num_actors = spec.workers.max_actors or spec.workers.min_actors
    return max(1, len(os.sched_getaffinity(0)) // num_actors)
