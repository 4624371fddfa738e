"""From a job to the engine that its actors run: which one, over which model.

`auto` is the continuous engine where the model fits it, and static batches with the reason where it does not.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_job.errors import ModelError, first_line
from ray_job.models.json_file import read_json_object
from ray_job.models.loading import NOOP, check_gpu, job_processor, load_model, load_processor, model_folder
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor
from ray_job.models.placement import Placement
from ray_job.models.processor import Processor
from ray_job.models.room import TEXT_TOKENS
from ray_job.spec import JobSpec, ModelSpec

if TYPE_CHECKING:
    from ray_job.engine.interface import Engine, Vocabulary
    from ray_job.engine.packed_model import PackedModel
    from ray_job.engine.padded_model import PaddedModel
    from ray_job.structured.matchers import TokenizerForms


@dataclass(frozen=True, slots=True)
class ChosenEngine:
    """An engine with its model loaded, and why it is this one."""

    engine: Engine
    name: str
    reason: str | None = None  # where it is not the one that is chosen if nothing speaks against it


def load_engine(spec: JobSpec, placement: Placement | None = None) -> Engine:
    """The engine alone; arguments and errors as for `choose_engine`."""
    return choose_engine(spec, placement).engine


def choose_engine(spec: JobSpec, placement: Placement | None = None) -> ChosenEngine:
    """The engine a job's actor runs, with its model.

    Args:
        spec: the job.
        placement: where and how it computes; by default as an actor that has this process's machine for itself.

    Raises:
        ModelError: as `load_model`; or the model does not fit the engine that is asked for, or none.
    """
    if spec.model.path == NOOP:
        from ray_job.engine.noop import NoOpEngine

        return ChosenEngine(NoOpEngine(), "noop")
    from ray_job.engine.interface import Vocabulary

    placement = placement or Placement.local(spec)
    if spec.batching.engine == "vllm":
        from ray_job.models.vllm.loading import load_vllm_engine

        if placement.device == "cuda":
            check_gpu(placement)
        return ChosenEngine(load_vllm_engine(spec, placement, model_folder(spec.model), job_processor(spec)), "vllm")
    processor = load_processor(spec.model)
    model = load_model(spec, placement)
    forms = _forms(spec, model, processor, placement)
    vocabulary = Vocabulary(processor.pad_id, frozenset(processor.stop_ids), processor.decode, forms)
    if _is_phi3_vision(processor):
        return _for_phi3_vision(spec, model, processor, vocabulary, placement)
    return _for_library_model(spec, model, processor, vocabulary, placement)


def check_engine(spec: JobSpec) -> None:
    """Looks at the model's configuration, without weights: what cannot run ends a job before its first row.

    Raises:
        ModelError: the library does not know the model, or it does not fit the engine that is asked for.
    """
    if spec.model.path == NOOP or _is_phi3_vision(load_processor(spec.model)):
        return
    folder = model_folder(spec.model, with_weights=False)
    if spec.batching.engine == "vllm":
        from ray_job.models.vllm.fidelity import check_model

        check_model(read_json_object(folder / "config.json"))
        return
    from ray_job.models.auto.configuration import read_config

    config = read_config(folder)
    _check_padding(spec)
    if spec.batching.engine == "continuous":
        from ray_job.models.auto.gate import misfit

        if (reason := misfit(config)) is not None:
            raise _unfit(spec.model, reason)


def _for_phi3_vision(
    spec: JobSpec, model: Any, processor: Processor, vocabulary: Vocabulary, placement: Placement
) -> ChosenEngine:
    if spec.batching.engine == "static":
        from ray_job.models.phi3_vision.padded import PaddedPhi3Vision

        return ChosenEngine(_static(spec, PaddedPhi3Vision(model, spec.batching.padding_side), vocabulary), "static")
    from ray_job.models.phi3_vision.packed import PackedPhi3Vision

    left_bytes = _left_bytes(spec, model, placement)
    packed = PackedPhi3Vision(model, free_bytes=left_bytes)
    left_bytes -= packed.packed_bytes
    return ChosenEngine(_continuous(spec, packed, processor, vocabulary, placement, left_bytes), "continuous")


def _for_library_model(
    spec: JobSpec, model: Any, processor: Processor, vocabulary: Vocabulary, placement: Placement
) -> ChosenEngine:
    from ray_job.engine.memory import is_fatal, is_out_of_memory
    from ray_job.models.auto.gate import fit
    from ray_job.models.auto.normalization import Normalization
    from ray_job.models.auto.padded import PaddedAuto
    from ray_job.models.auto.padded_gate import why_alone, why_not_padded
    from ray_job.models.auto.probe_rows import probe_rows
    from ray_job.models.auto.processor import LibraryProcessor
    from ray_job.models.auto.unfit import Unfit

    assert isinstance(processor, LibraryProcessor)
    _check_padding(spec)
    normalization = processor.normalization or Normalization()
    reason = None
    if spec.batching.engine != "static":
        try:
            left_bytes = _left_bytes(spec, model, placement)
            packed = fit(model, normalization, probe_rows(processor), left_bytes)
        except Unfit as unfit:
            reason = str(unfit)
            if spec.batching.engine == "continuous":
                raise _unfit(spec.model, reason) from None
        else:
            left_bytes -= packed.packed_bytes
            return ChosenEngine(_continuous(spec, packed, processor, vocabulary, placement, left_bytes), "continuous")
    if (objection := why_not_padded(model)) is not None:
        raise _no_engine(spec.model, reason, objection)
    padded = PaddedAuto(model, normalization, max_len=processor.max_len)
    try:
        objection = why_alone(model, padded)
    except Exception as error:  # whatever a model that the library itself cannot run raises
        if is_out_of_memory(error) or is_fatal(error):
            raise
        said = f"cannot be run by the library itself ({type(error).__name__}: {first_line(error)})"
        raise _no_engine(spec.model, reason, said) from error
    if objection is not None:
        padded.max_rows = 1
        reason = "; ".join([*([reason] if reason else []), f"one row at a time, as it {objection}"])
    return ChosenEngine(_static(spec, padded, vocabulary), "static", reason)


def _forms(spec: JobSpec, model: Any, processor: Processor, placement: Placement) -> TokenizerForms:
    """The forms of the model's answers; of a job that has one the tokenizer is read and the form compiled now."""
    from ray_job.structured.matchers import TokenizerForms

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else model.lm_head
    stop_ids, num_ids = processor.stop_ids, int(head.weight.shape[0])
    forms = TokenizerForms(processor.tokenizer_json, num_ids, stop_ids, processor.decode, placement.threads)
    if spec.generation.structured_outputs is not None:
        forms.load(spec.generation.structured_outputs)
    return forms


def _static(spec: JobSpec, model: PaddedModel, vocabulary: Vocabulary) -> Engine:
    from ray_job.engine.batching import DEFAULT_MAX_TOKENS
    from ray_job.engine.static import StaticEngine

    return StaticEngine(
        model,
        vocabulary,
        max_batch_rows=spec.batching.max_batch_rows,
        max_batch_tokens=spec.batching.max_batch_tokens or DEFAULT_MAX_TOKENS,
        row_deadline_s=spec.limits.row_deadline_s,
    )


def _continuous(
    spec: JobSpec,
    model: PackedModel,
    processor: Processor,
    vocabulary: Vocabulary,
    placement: Placement,
    left_bytes: int,
) -> Engine:
    from ray_job.engine.continuous import ContinuousEngine
    from ray_job.engine.memory import free_bytes, pool_tokens

    batching = spec.batching
    if placement.device == "cuda":
        left_bytes = free_bytes(model.device, placement.gpu_share)
    # At least a row with one picture of full size: its prompt with a text beside it, and the answer.
    least_tokens = processor.max_image_tokens + TEXT_TOKENS + spec.generation.max_new_tokens
    return ContinuousEngine(
        model,
        vocabulary,
        max_slots=batching.max_batch_rows,
        max_tokens=batching.max_batch_tokens or pool_tokens(model, left_bytes, least_tokens),
        step_tokens=batching.step_tokens,
        vision_cache_bytes=_vision_cache_bytes(spec),
        prefix_sharing=batching.share_prefixes,
        row_deadline_s=spec.limits.row_deadline_s,
    )


def _left_bytes(spec: JobSpec, model: Any, placement: Placement) -> int:
    """Memory beside the weights and the pictures' cache; may be below 0."""
    from ray_job.models.quantization import stored_bytes

    # Weights may be pages of their files, which count as available though they are needed all the time.
    weights = sum(stored_bytes(weight) for weight in model.parameters())
    return placement.memory_bytes - weights - _vision_cache_bytes(spec)


def _vision_cache_bytes(spec: JobSpec) -> int:
    return spec.batching.vision_cache_mib * 2**20


def _is_phi3_vision(processor: Processor) -> bool:
    return isinstance(processor, Phi3VisionProcessor)


def _check_padding(spec: JobSpec) -> None:
    if spec.batching.padding_side != "left":
        raise ModelError("batching.padding_side: right is for Phi-3-Vision alone; leave it out")


def _no_engine(model: ModelSpec, reason: str | None, objection: str) -> ModelError:
    both = f"{reason}, and it {objection}" if reason else f"it {objection}"
    release = importlib.metadata.version("transformers")
    return ModelError(
        f"{model.path}: no engine can run this model: {both}; use another model, or another release of transformers "
        f"(this is {release})"
    )


def _unfit(model: ModelSpec, reason: str) -> ModelError:
    return ModelError(
        f"batching.engine: {model.path} cannot run in the continuous engine: {reason}; set it to auto or static"
    )
