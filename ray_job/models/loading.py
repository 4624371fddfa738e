"""From a spec's `model` section to a processor and an engine.

Heavy imports happen inside the functions that need them: preparing rows must not load torch.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ray_job.errors import ModelError, first_line
from ray_job.models.cuda import Cuda, is_usable
from ray_job.models.hub import snapshot_folder
from ray_job.models.json_file import read_json_object
from ray_job.models.phi3_vision.configuration import MODEL_TYPE
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor
from ray_job.models.placement import Placement
from ray_job.models.processor import Processor
from ray_job.models.store import download_model
from ray_job.models.threads import compute_with
from ray_job.spec import JobSpec, ModelSpec
from ray_job.storage.places import parse_uri

if TYPE_CHECKING:
    from ray_job.engine.interface import Engine, Vocabulary
    from ray_job.models.phi3_vision.model import Phi3VisionModel

DEMO, NOOP = "builtin:demo", "builtin:noop"
_TEXT_TOKENS = 1024  # room for what stands beside a picture


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


def load_processor(model: ModelSpec) -> Processor:
    """The model's processor; kept, since a worker prepares many batches.

    Raises:
        ModelError: there is no such model, its files are not right, or an option is another model's.
    """
    return _processor(model.model_dump_json())


@functools.lru_cache(maxsize=4)
def _processor(model_json: str) -> Processor:
    model = ModelSpec.model_validate_json(model_json)
    folder = model_folder(model, with_weights=False)
    if _is_phi3_vision(folder):
        if model.processor_options:
            raise ModelError(
                "model.processor_options: Phi-3-Vision has none; model.num_crops limits a picture's tokens"
            )
        return Phi3VisionProcessor.from_pretrained(folder, num_crops=model.num_crops)
    from ray_job.models.auto.processor import LibraryProcessor

    if model.num_crops is not None:
        raise ModelError(
            f"model.num_crops: only Phi-3-Vision has it, and {folder} is another model; what limits a picture's tokens "
            "there, such as max_pixels, goes into model.processor_options"
        )
    return LibraryProcessor.from_pretrained(folder, model.processor_options)


def _is_phi3_vision(folder: Path) -> bool:
    """By config.json; a folder without one, which its processor can do without, counts as Phi-3-Vision's."""
    path = folder / "config.json"
    return not path.exists() or read_json_object(path).get("model_type") == MODEL_TYPE


def job_processor(spec: JobSpec) -> Processor:
    """The processor of a job's model, as its engine wants pictures prepared."""
    processor = load_processor(spec.model)
    if spec.batching.engine == "vllm" and not isinstance(processor, Phi3VisionProcessor):
        from ray_job.models.auto.processor import LibraryProcessor
        from ray_job.models.vllm.processor import UndonePictures

        assert isinstance(processor, LibraryProcessor)
        return UndonePictures(processor, processor.undone)
    return processor


def load_model(spec: JobSpec, placement: Placement | None = None) -> Phi3VisionModel:
    """Weights on their device, in evaluation mode.

    Args:
        spec: the job.
        placement: where and how it computes; by default as an actor that has this process's machine for itself.

    Raises:
        ModelError: the configuration or the weights are not right, or the GPU cannot be used or lacks the dtype.
    """
    import torch

    from ray_job.engine.memory import is_out_of_memory
    from ray_job.models.casting import cast_where_slow
    from ray_job.models.phi3_vision import weights

    placement = placement or Placement.local(spec)
    if placement.device == "cuda":
        _check_gpu(placement)
    compute_with(placement.threads)
    folder = model_folder(spec.model)
    dtype = getattr(torch, placement.dtype)
    try:
        model = weights.load(folder, dtype=dtype, device=placement.device, attention=spec.model.attention)
        if placement.device == "cuda":
            _try_gpu()
    except (RuntimeError, AssertionError) as error:
        if placement.device == "cpu" or is_out_of_memory(error) or "cuda" not in str(error).lower():
            raise
        raise Cuda.find().error(first_line(error)) from error
    return cast_where_slow(model)


def load_engine(spec: JobSpec, placement: Placement | None = None) -> Engine:
    """The engine a job's actor runs; arguments and errors as for `load_model`."""
    if spec.model.path == NOOP:
        from ray_job.engine.noop import NoOpEngine

        return NoOpEngine()
    from ray_job.engine.interface import Vocabulary

    placement = placement or Placement.local(spec)
    if spec.batching.engine == "vllm":
        from ray_job.models.vllm.loading import load_vllm_engine

        if placement.device == "cuda":
            _check_gpu(placement)
        return load_vllm_engine(spec, placement, model_folder(spec.model), job_processor(spec))
    processor = load_processor(spec.model)
    vocabulary = Vocabulary(processor.pad_id, frozenset(processor.stop_ids), processor.decode)
    model = load_model(spec, placement)
    if spec.batching.engine == "static":
        return _static_engine(spec, model, vocabulary)
    return _continuous_engine(spec, model, vocabulary, placement, processor.max_image_tokens)


def _static_engine(spec: JobSpec, model: Phi3VisionModel, vocabulary: Vocabulary) -> Engine:
    from ray_job.engine.batching import DEFAULT_MAX_TOKENS
    from ray_job.engine.static import StaticEngine

    batching = spec.batching
    return StaticEngine(
        model,
        vocabulary,
        max_batch_rows=batching.max_batch_rows,
        max_batch_tokens=batching.max_batch_tokens or DEFAULT_MAX_TOKENS,
        padding_side=batching.padding_side,
        row_deadline_s=spec.limits.row_deadline_s,
    )


def _continuous_engine(
    spec: JobSpec, model: Phi3VisionModel, vocabulary: Vocabulary, placement: Placement, max_image_tokens: int
) -> Engine:
    from ray_job.engine.continuous import ContinuousEngine
    from ray_job.engine.memory import free_bytes, pool_tokens
    from ray_job.models.phi3_vision.packed import PackedPhi3Vision

    batching = spec.batching
    vision_cache_bytes = batching.vision_cache_mib * 2**20
    # Weights may be pages of their files, which count as available though they are needed all the time.
    left_bytes = placement.memory_bytes - sum(weight.nbytes for weight in model.parameters())
    packed = PackedPhi3Vision(model, free_bytes=left_bytes)
    left_bytes -= packed.packed_bytes + vision_cache_bytes
    if placement.device == "cuda":
        left_bytes = free_bytes(model.device, placement.gpu_share)
    # At least a row with one picture of full size: its prompt with a text beside it, and the answer.
    least_tokens = max_image_tokens + _TEXT_TOKENS + spec.generation.max_new_tokens
    return ContinuousEngine(
        packed,
        vocabulary,
        max_slots=batching.max_batch_rows,
        max_tokens=batching.max_batch_tokens or pool_tokens(packed, left_bytes, least_tokens),
        step_tokens=batching.step_tokens,
        vision_cache_bytes=vision_cache_bytes,
        prefix_sharing=batching.share_prefixes,
        row_deadline_s=spec.limits.row_deadline_s,
    )


def _check_gpu(placement: Placement) -> None:
    """Raises ModelError unless torch can use a GPU, and that computes in the dtype."""
    import torch

    if not is_usable():
        raise Cuda.find().error()
    if placement.dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ModelError(f"model.dtype: {torch.cuda.get_device_name()} does not compute in bfloat16; set it to float16")
    if placement.dtype == "float32":
        torch.backends.cudnn.allow_tf32 = False  # else convolutions round to 10 bits


def _try_gpu() -> None:
    """Raises what torch raises where it has no kernels for the GPU; copying alone would not show that."""
    import torch

    torch.ones(1, device="cuda").add_(1).item()
