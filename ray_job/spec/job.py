"""One job: its sections, and what must hold between them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator

from ray_job.errors import SpecError
from ray_job.spec.batching import BatchingSpec
from ray_job.spec.documents import DocumentsSpec
from ray_job.spec.generation import GenerationSpec
from ray_job.spec.input import InputSpec
from ray_job.spec.limits import LimitsSpec
from ray_job.spec.model import ModelSpec
from ray_job.spec.output import OutputSpec
from ray_job.spec.problems import problems
from ray_job.spec.prompt import PromptSpec
from ray_job.spec.reading import apply_override, load_yaml
from ray_job.spec.section import Section
from ray_job.spec.workers import WorkersSpec

# Parts of a large job are large enough to leave few files; a small one has at least so many, where blocks allow.
_MOST_PART_ROWS, _FEWEST_PARTS = 256, 20

_HIGHEST_VLLM_TEMPERATURE = 2.0

# How an input is read decides its ids and the texts in its columns.
_INPUT_ANSWER_FIELDS = ("id_column", "encoding", "delimiter", "column_names", "column_types", "pictures", "truncated")


class JobSpec(Section):
    """One batch inference job."""

    input: InputSpec
    output: OutputSpec
    documents: DocumentsSpec = DocumentsSpec()
    prompt: PromptSpec = PromptSpec()
    model: ModelSpec = ModelSpec()
    generation: GenerationSpec = GenerationSpec()
    batching: BatchingSpec = BatchingSpec()
    workers: WorkersSpec = WorkersSpec()
    limits: LimitsSpec = LimitsSpec()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.output.retry_failed and self.output.mode not in ("resume", "append"):
            raise ValueError(
                f"output.retry_failed goes with output.mode resume or append, and the mode is {self.output.mode!r}"
            )
        gpus = self.workers.gpus_per_actor
        if gpus != "auto" and self.model.device == ("cpu" if gpus else "cuda"):
            raise ValueError(
                f"model.device is {self.model.device} and workers.gpus_per_actor is {gpus:g}: "
                + ("the GPU would be reserved and not used" if gpus else "the actor would have no GPU to compute on")
                + "; leave one of them at auto"
            )
        is_vllm = self.batching.engine == "vllm"
        if gpus != "auto" and gpus > 1 and not is_vllm:
            raise ValueError(
                f"workers.gpus_per_actor is {gpus:g}, and the {self.batching.engine} engine holds the whole model "
                "on one GPU; set batching.engine: vllm, or raise workers.min_actors to use several GPUs"
            )
        if is_vllm and self.generation.temperature > _HIGHEST_VLLM_TEMPERATURE:
            raise ValueError(
                f"generation.temperature is {self.generation.temperature:g}, and vLLM takes at most "
                f"{_HIGHEST_VLLM_TEMPERATURE:g}; lower it"
            )
        if is_vllm and self.model.attention != "sdpa":
            raise ValueError(f"model.attention is {self.model.attention}, and vLLM has its own; leave it out")
        if is_vllm and self.model.adapter is not None:
            raise ValueError(
                "model.adapter: vLLM loads the checkpoint as it is; merge the adapter into it with peft and give the "
                "merged folder as model.path, or set batching.engine: auto"
            )
        if is_vllm and self.model.quantization is not None:
            raise ValueError(
                "model.quantization: vLLM quantizes by itself; set batching.engine_options: {quantization: …}, or "
                "batching.engine: auto"
            )
        if self.limits.max_images == 0 and self.input.format in ("images", "documents"):
            raise ValueError(f"limits.max_images is 0 but input.format is {self.input.format}")
        pages = self.documents.pages_per_row
        if pages is not None and pages > self.limits.max_images:
            raise ValueError(f"documents.pages_per_row is {pages} but limits.max_images is {self.limits.max_images}")
        return self

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "spec") -> JobSpec:
        """Validates a mapping.

        Raises:
            SpecError: with one line for every problem.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SpecError(problems(error, cls, "spec"), source) from None

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> JobSpec:
        """Reads a YAML file and applies `section.key=value` overrides (values are YAML).

        Raises:
            SpecError: the file does not exist or is not YAML, an override is malformed, or any field is wrong.
        """
        data = load_yaml(Path(path), cls.model_fields)
        for override in overrides:
            apply_override(data, override)
        return cls.from_dict(data, str(path))

    @property
    def has_questions(self) -> bool:
        """Whether a row may be asked several questions; the output then has `question_index`."""
        return self.prompt.questions is not None or self.prompt.questions_column is not None

    def rows_of_a_part(self, num_rows: int) -> int:
        """`output.part_rows`, settled for an input of so many rows."""
        if self.output.part_rows is not None:
            return self.output.part_rows
        if self.has_questions:  # a row of the input may be many of the output
            return _MOST_PART_ROWS
        block_rows = self.batching.block_rows
        blocks = min(num_rows // (_FEWEST_PARTS * block_rows), _MOST_PART_ROWS // block_rows)
        return max(blocks, 1) * block_rows

    def answer_fields(self) -> dict[str, dict[str, Any]]:
        """The fields that can change an answer, by section; see `fingerprint.py` for what else can.

        The paths of the model and its adapter are not among them, since their files' content is in the fingerprint.
        """
        dump = self.model_dump(mode="json")
        # A field that came later is left out where it is not set, so that outputs of before go on.
        quantization = {} if self.model.quantization is None else {"quantization": self.model.quantization}
        return {
            "input": {
                **{key: dump["input"][key] for key in _INPUT_ANSWER_FIELDS},
                "background": list(self.input.background_rgb),
            },
            "documents": {"pages_per_row": dump["documents"]["pages_per_row"]},
            "prompt": dump["prompt"],
            "model": {
                **{key: dump["model"][key] for key in ("dtype", "num_crops", "processor_options")},
                **quantization,
            },
            "generation": _generation_fields(dump["generation"]),
            "batching": self.batching.answer_fields(),
        }


def _generation_fields(dump: dict[str, Any]) -> dict[str, Any]:
    """The form as one text, since an answer has its keys in the schema's order; left out where there is none."""
    form = dump["structured_outputs"]
    others = {name: value for name, value in dump.items() if name != "structured_outputs"}
    return others if form is None else {**others, "structured_outputs": json.dumps(form, ensure_ascii=False)}
