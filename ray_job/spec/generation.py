"""How answers are generated, for the job and for a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from ray_job.spec.schema_file import read_schema
from ray_job.spec.section import Ints, Section, Strings, has_half_pair
from ray_job.spec.structured_outputs import StructuredOutputs

# Below this temperature a token other than the most likely could only be drawn where logits differ by rounding.
_LOWEST_TEMPERATURE = 1e-5
LENGTH_NAMES = ("max_new_tokens", "max_completion_tokens", "max_tokens", "max_output_tokens")
"""What engines and APIs call the longest answer; the first is ours."""


def with_one_length(params: Mapping[str, Any]) -> dict[str, Any]:
    """Generation parameters, the longest answer under our name for it. Raises ValueError where two names differ."""
    given = {name: params[name] for name in LENGTH_NAMES if params.get(name) is not None}
    value, *others = given.values() or [None]
    if any(other != value for other in others):
        values = " and ".join(map(repr, given.values()))
        raise ValueError(f"{' and '.join(given)} differ ({values}) and mean the same limit; keep one")
    rest = {name: value for name, value in params.items() if name not in LENGTH_NAMES[1:]}
    return rest | ({LENGTH_NAMES[0]: value} if given else {})


def _with_other_length_names(schema: dict[str, Any]) -> None:
    ours, *others = LENGTH_NAMES
    found = {key: value for key, value in schema["properties"][ours].items() if key not in ("default", "title")}
    schema["properties"] |= {name: {**found, "description": f"The same as `{ours}`."} for name in others}


class GenerationParams(Section):
    """How an answer is generated. Each field can be overridden per row by `overrides_column`."""

    model_config = ConfigDict(json_schema_extra=_with_other_length_names)

    max_new_tokens: int = Field(
        128,
        ge=1,
        description="Maximum number of tokens in an answer. `max_tokens`, `max_completion_tokens` and "
        "`max_output_tokens` mean the same.",
    )
    temperature: float = Field(
        0.0, ge=0.0, le=100.0, description="0, and anything below 0.00001: greedy. Otherwise: sampling."
    )
    top_p: float = Field(
        1.0,
        ge=0.0,
        le=1.0,
        description="Sample from the smallest set of most likely tokens whose probabilities add up to this. 1: off. 0: "
        "only the most likely token, as in OpenAI's API (vLLM refuses 0).",
    )
    top_k: int = Field(0, ge=-1, description="Sample from this many most likely tokens. 0 or -1: off, as in vLLM.")
    repetition_penalty: float = Field(
        1.0,
        ge=0.01,
        le=10.0,
        description="Divides positive and multiplies negative logits of tokens in the prompt or the answer. 1: off.",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="With sampling. The job's seed is mixed with each row's id; a row's own seed is used as it is.",
    )
    stop: Strings = Field((), description="Strings that end an answer; they are not part of it.")
    stop_token_ids: Ints = Field((), description="Token ids that end an answer, in addition to the model's own.")
    structured_outputs: StructuredOutputs | None = Field(
        None, description="The form that answers must have. Default: any text."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, data: Any) -> Any:
        return with_one_length(data) if isinstance(data, Mapping) else data

    @field_validator("top_k", mode="after")
    @classmethod
    def _off_is_zero(cls, top_k: int) -> int:
        return max(top_k, 0)

    @model_validator(mode="after")
    def _no_empty_stop(self) -> Self:
        if "" in self.stop:
            raise ValueError("stop: an empty string would end every answer at once; remove it")
        if any(has_half_pair(text) for text in self.stop):
            raise ValueError("stop: holds half of a surrogate pair, which is no character; remove it")
        return self

    @property
    def is_greedy(self) -> bool:
        """Whether the answer is the most likely token at every step."""
        return self.temperature < _LOWEST_TEMPERATURE or self.top_p == 0.0 or self.top_k == 1

    def overridden(self, overrides: Mapping[str, Any]) -> GenerationParams:
        """These parameters with some replaced; `model_fields_set` of the result has the names of those.

        Raises:
            ValueError: a name or value is not allowed; pydantic.ValidationError where it is one field's.
        """
        own = with_one_length(overrides)
        whole = GenerationParams.model_validate({**self.model_dump(), **own})
        return GenerationParams.model_construct(set(own), **dict(whole))


class GenerationSpec(GenerationParams):
    """Generation parameters of the job, and where rows may change them."""

    overrides_column: str | None = Field(
        None,
        description="Column with the row's own parameters (struct or JSON object). Default: for requests in JSONL, "
        "those of the request body.",
    )

    @field_validator("structured_outputs", mode="before")
    @classmethod
    def _read_schema(cls, form: Any) -> Any:
        if not isinstance(form, Mapping) or "json" not in form:
            return form
        try:
            return {**form, "json": read_schema(form["json"])}
        except ValueError as error:
            raise ValueError(f"json: {error}") from None

    @property
    def params(self) -> GenerationParams:
        """The parameters alone."""
        return GenerationParams.model_validate(self.model_dump(exclude={"overrides_column"}))
