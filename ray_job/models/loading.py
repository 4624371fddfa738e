"""From a spec's `model` section to a processor and a model.

Heavy imports happen inside the functions that need them: preparing rows must not load torch.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    import torch

    from ray_job.models.phi3_vision.attention import Attention

DEMO, NOOP = "builtin:demo", "builtin:noop"
_BUILTINS = {DEMO: "model", NOOP: "model", "builtin:demo-llava-next": "llava_next"}  # folders in ray_job/demo


def model_folder(model: ModelSpec, *, with_weights: bool = True) -> Path:
    """Where the model's files are on this machine; a hub id's or a bucket's are downloaded, once for all its processes.

    Raises:
        ModelError: there is no such model.
    """
    if model.path in _BUILTINS:
        return Path(__file__).parent.parent / "demo" / _BUILTINS[model.path]
    if parse_uri(model.path) is not None:
        return download_model(model.path, with_weights=with_weights)
    return snapshot_folder(model.path, model.revision)


def settle_model(model: ModelSpec) -> ModelSpec:
    """The same model with local folders made absolute: workers start elsewhere."""
    named = {"path": "" if model.path in _BUILTINS else model.path, "adapter": model.adapter or ""}
    folders = {name: os.path.abspath(path) for name, path in named.items() if os.path.isdir(path)}
    return model.model_copy(update=folders)


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


def load_model(spec: JobSpec, placement: Placement | None = None) -> Any:
    """Weights on their device, in evaluation mode: a `Phi3VisionModel`, or the library's model of config.json's type.

    Args:
        spec: the job.
        placement: where and how it computes; by default as an actor that has this process's machine for itself.

    Raises:
        ModelError: the configuration, the weights or the adapter are not right, a package that they need is not
            installed, or the GPU cannot be used or lacks the dtype.
    """
    from ray_job.engine.memory import is_out_of_memory

    placement = placement or Placement.local(spec)
    if placement.device == "cuda":
        check_gpu(placement)
    compute_with(placement.threads)
    try:
        model = _loaded(spec.model, placement)
        if placement.device == "cuda":
            _try_gpu()
    except (RuntimeError, AssertionError) as error:
        if placement.device == "cpu" or is_out_of_memory(error) or "cuda" not in str(error).lower():
            raise
        raise Cuda.find().error(first_line(error)) from error
    return model


def _loaded(spec: ModelSpec, placement: Placement) -> Any:
    import torch

    from ray_job.models.adapters import adapter_folder, merge_adapter
    from ray_job.models.casting import cast_where_slow, computing_dtype
    from ray_job.models.quantization import quantize_layers

    folder, adapter = model_folder(spec), adapter_folder(spec)
    # What is quantised goes to the GPU layer by layer, which then never holds the whole weights.
    device = "cpu" if spec.quantization else placement.device
    model = _load_weights(folder, getattr(torch, placement.dtype), device, spec.attention)
    if adapter is not None:
        model = merge_adapter(model, adapter)
    if placement.device == "cpu":
        cast_where_slow(model)
    if spec.quantization is not None:
        quantize_layers(decoder_layers(model), spec.quantization, computing_dtype(model), placement.device)
        model.to(placement.device)
    return model


def _load_weights(folder: Path, dtype: torch.dtype, device: str, attention: Attention) -> Any:
    if _is_phi3_vision(folder):
        from ray_job.models.phi3_vision import weights

        return weights.load(folder, dtype=dtype, device=device, attention=attention)
    from ray_job.models.auto import weights as library_weights

    return library_weights.load(folder, dtype=dtype, device=device, attention=attention)


def decoder_layers(model: Any) -> Any:
    """The layers of a model's decoder, without embeddings, head and vision tower; ours or the library's."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.model
    return getattr(decoder, "layers", decoder)


def check_gpu(placement: Placement) -> None:
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
