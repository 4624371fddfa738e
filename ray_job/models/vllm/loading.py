"""From a spec to vLLM's engine, ready to answer.

vLLM's scheduler, and with one GPU or a CPU its model, run in the actor's own process, not in one beside it
(`VLLM_ENABLE_V1_MULTIPROCESSING=0`). Whatever kills the one kills the other: a crash in native code is the actor's
death, which Ray and the poison search know how to handle, an exception arrives with its own words, and nothing is left
behind that holds a GPU. Where a model is split, each part has a process of vLLM's (`worker.py`). The price is that
pictures are processed between steps and not beside them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_job.engine.interface import Vocabulary
from ray_job.errors import ModelError, RayJobError
from ray_job.models.json_file import read_json_object
from ray_job.models.phi3_vision.configuration import FILE, MODEL_TYPE, Phi3VisionConfig
from ray_job.models.phi3_vision.processor import PIXELS, Phi3VisionProcessor
from ray_job.models.placement import Placement
from ray_job.models.processor import Processor
from ray_job.models.threads import compute_with
from ray_job.models.vllm.arguments import engine_arguments
from ray_job.models.vllm.fidelity import check_attention, check_model, check_pictures
from ray_job.models.vllm.installation import vllm_version
from ray_job.models.vllm.processor import IMAGE
from ray_job.models.vllm.prompts import PromptFormat
from ray_job.redaction.text import without_secrets
from ray_job.spec import JobSpec

if TYPE_CHECKING:
    from ray_job.models.vllm.engine import VllmEngine

_PLACEHOLDER_FIELDS = ("boi_token_index", "image_token_id", "image_token_index")  # of config.json; the first counts
_SHOWN_CHARS = 600
_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",  # the files are here
}
_DEFAULTS = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    # Threads bound to cores would share them with those of the actors beside this one.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "KMP_AFFINITY": "none",
}


def load_vllm_engine(spec: JobSpec, placement: Placement, folder: Path, processor: Processor) -> VllmEngine:
    """vLLM over a checkpoint.

    Args:
        spec: the job.
        placement: of this process.
        folder: of the checkpoint, on this machine.
        processor: the job's.

    Raises:
        ModelError: vLLM is not installed here, or does not load the model; says on which machine.
    """
    version = vllm_version()
    vocabulary = Vocabulary(processor.pad_id, frozenset(processor.stop_ids), processor.decode)
    config = read_json_object(folder / FILE, "give a folder that holds a model")
    check_model(config)
    parts = int(spec.batching.engine_options.get("tensor_parallel_size", 1))
    is_phi3_vision = config.get("model_type") == MODEL_TYPE
    with _own_settings(max(1, placement.threads // parts)):
        from ray_job.models.vllm.engine import VllmEngine

        try:
            if is_phi3_vision:
                assert isinstance(processor, Phi3VisionProcessor)
                model, prompts = _phi3_vision(folder, processor)
            else:
                model, prompts = {}, library_format(config)
            llm = _load(engine_arguments(spec, placement, folder, model))
            _end_with(vocabulary.stop_ids)
            check_attention(llm.model_config.is_mm_prefix_lm, placement)
            engine = VllmEngine(
                llm,
                vocabulary,
                prompts,
                max_slots=spec.batching.max_batch_rows,
                row_deadline_s=spec.limits.row_deadline_s,
            )
            if is_phi3_vision:
                llm.renderer.validate_token_ids = _take_any  # pictures' ids stand outside of the vocabulary
            else:
                check_pictures(processor, spec.model.processor_options, engine.rendered_ids)
        except RayJobError:
            raise
        except Exception as error:
            raise ModelError(
                f"{spec.model.path}: vLLM {version} does not load it on {socket.gethostname()}: {_reason(error)}"
            ) from error
    return engine


def library_format(config: Mapping[str, Any]) -> PromptFormat:
    """How vLLM is handed the pictures of a model that it has a processor for: undone, each one token in the prompt.

    Args:
        config: what config.json holds.

    Raises:
        ModelError: it does not say which token stands for a picture.
    """
    for name in _PLACEHOLDER_FIELDS:
        token = config.get(name)
        if isinstance(token, int) and not isinstance(token, bool):
            return PromptFormat(IMAGE, token)
    raise ModelError(
        f"{config.get('model_type')}: config.json has no {', '.join(_PLACEHOLDER_FIELDS[1:])}, so what stands for a "
        "picture in a prompt is not known. batching.engine: auto may run this model"
    )


def _phi3_vision(folder: Path, processor: Phi3VisionProcessor) -> tuple[dict[str, Any], PromptFormat]:
    """vLLM's arguments for Phi-3-Vision, which this process is told of, and how pictures are handed over.

    vLLM rotates every row by the long factors if rows may be that long; so they may not, unless the job says so.
    """
    from ray_job.models.vllm import phi3_vision, worker

    config = Phi3VisionConfig.from_pretrained(folder)
    longest = config.original_max_position_embeddings if config.long_factor else config.max_position_embeddings
    if config.sliding_window is not None and config.sliding_window < longest:
        raise ModelError(
            f"{folder}: a sliding window of {config.sliding_window} tokens, which vLLM's decoder has not; set "
            "batching.engine: auto"
        )
    phi3_vision.register()
    arguments = {
        "max_model_len": longest,
        "hf_overrides": {phi3_vision.NUM_CROPS: processor.num_crops},
        "worker_extension_cls": worker.EXTENSION,
    }
    return arguments, PromptFormat(PIXELS)


def _reason(error: Exception) -> str:
    """All that it says: pydantic puts the reason on its later lines."""
    return f"{type(error).__name__}: {' '.join(without_secrets(str(error)).split())[:_SHOWN_CHARS]}"


def _end_with(stop_ids: Collection[int]) -> None:
    """Lets any of these ids end an answer with a form; vLLM by itself knows one, and not that of most chats."""
    from llguidance.hf import from_tokenizer
    from vllm.v1.structured_output.backend_guidance import GuidanceBackend

    def tokenizer_of(tokenizer: Any, vocab_size: int) -> Any:
        return from_tokenizer(tokenizer, max(vocab_size, len(tokenizer)), eos_token=sorted(stop_ids))

    GuidanceBackend._build_ll_tokenizer = staticmethod(tokenizer_of)


def _take_any(token_ids: Sequence[int], *, parameter: str | None = None) -> None:
    """In the place of vLLM's check of ids."""


def _load(arguments: Mapping[str, Any]) -> Any:
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    return LLMEngine.from_engine_args(EngineArgs(**arguments))


@contextmanager
def _own_settings(threads: int) -> Iterator[None]:
    """While open, the environment that vLLM reads; what it changes in this process is put back.

    It sets variables for processes that it starts, and on a CPU takes `torch.set_num_threads` away. Where a model is
    split over processes, each computes with so many threads.
    """
    before = dict(os.environ)
    os.environ.update({**_DEFAULTS, **before, **_SETTINGS, "OMP_NUM_THREADS": str(threads)})
    import torch

    set_num_threads = torch.set_num_threads
    try:
        compute_with(threads)
        yield
    finally:
        torch.set_num_threads = set_num_threads
        os.environ.clear()
        os.environ.update(before)
