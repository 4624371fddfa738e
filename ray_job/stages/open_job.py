"""From a spec to all that a job needs before its first row: the input's plan and a preparer. Reads headers only."""

from __future__ import annotations

from ray_job.errors import SpecError
from ray_job.inputs.documents.passwords import Passwords
from ray_job.inputs.opening import open_source
from ray_job.inputs.source import Source
from ray_job.models.adapters import check_adapter
from ray_job.models.engines import check_engine
from ray_job.models.loading import job_processor, model_folder, settle_model
from ray_job.models.quantization import check_once
from ray_job.models.vllm.installation import check as check_vllm
from ray_job.spec import JobSpec
from ray_job.stages.prepare import Preparer


def open_job(spec: JobSpec) -> tuple[JobSpec, Source, Preparer]:
    """Checks a spec against its input's headers and its model's small files, and settles what they decide.

    Raises:
        SpecError: answers cannot be held to the form asked for: each reason with its place in the schema.
        SpecError, InputError: the input is not there, or has not the columns the spec names; a password is not set;
            the model takes no system prompt, and there is one.
        ModelError: the model's folder has no usable configuration or tokenizer, its adapter cannot be merged, or
            the engine that is asked for is not installed or cannot run it.
    """
    _check_form(spec)
    Passwords.check(spec.documents)
    check_vllm(spec)
    source = open_source(spec)
    version = spec.input.version if source.version is None else source.version
    settled = {"input": spec.input.model_copy(update={"version": version}), "prompt": source.prompt}
    spec = spec.model_copy(update={**settled, "model": settle_model(spec.model)})
    processor = job_processor(spec)
    check_adapter(spec.model)
    check_once(spec.model, model_folder(spec.model, with_weights=False) / "config.json")
    check_engine(spec)
    if spec.prompt.system is not None and not processor.takes_system:
        raise SpecError(
            ["prompt.system: the model's chat template has no place for a system prompt; write it into prompt.template"]
        )
    limit = spec.limits.max_prompt_tokens or processor.max_len - 1
    return spec, source, Preparer(spec, source.without_splits(), processor, limit)


def _check_form(spec: JobSpec) -> None:
    form = spec.generation.structured_outputs
    if form is None:
        return
    from ray_job.structured.grammar import FormError, grammar_of

    try:
        grammar_of(form)
    except FormError as error:
        raise SpecError([f"generation.structured_outputs.{problem}" for problem in error.problems]) from None
