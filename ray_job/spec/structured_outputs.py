"""What form an answer must have."""

from __future__ import annotations

from typing import Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from ray_job.spec.section import Section, Strings


class StructuredOutputs(Section):
    """The form that an answer must have: one of `json`, `regex`, `choice` and `grammar`, with vLLM's names."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=False)

    json_schema: JsonValue = Field(
        None,
        alias="json",
        description="A JSON Schema, or `true` for any object: the answer is JSON that conforms to it.",
    )
    regex: str | None = Field(None, description="The whole answer matches this regular expression.")
    choice: Strings | None = Field(None, description="The answer is one of these texts.")
    grammar: str | None = Field(None, description="The answer conforms to this grammar, in Lark's notation.")
    close_at_limit: bool = Field(
        False,
        description="End the answer in a valid way before `max_new_tokens` is reached, where the form allows it. "
        "Otherwise an answer that is too long is cut off, with `finish_reason: length`.",
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = [name for name in ("json", "regex", "choice", "grammar") if self._form(name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none of them"
            raise ValueError(f"give one of json, regex, choice and grammar; got {found}")
        return self

    def _form(self, name: str) -> object:
        return getattr(self, "json_schema" if name == "json" else name)
