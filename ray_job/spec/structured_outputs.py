"""What form an answer must have."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticSerializationError

from ray_job.spec.section import Section, Strings

MAX_SCHEMA_DEPTH = 64


def _as_texts(value: Any) -> Any:
    """Whole numbers and truth values among them as JSON writes them."""
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        raise ValueError("an empty list; give the texts that an answer may be")
    return [str(each).lower() if isinstance(each, bool | int) else each for each in values]


_Texts = Annotated[Strings, BeforeValidator(_as_texts)]


def _as_schema(value: Any) -> Any:
    """Files and classes are the job's, which has read them already (`GenerationSpec`)."""
    if isinstance(value, dict):
        _check_json(value)
    elif value is not None and value is not True:
        raise ValueError(f"got {value!r:.60}; allowed: a JSON Schema (an object), or true for any object")
    return value


def _check_json(schema: dict[Any, Any]) -> None:
    """Raises ValueError for what JSON has not, or too deep a schema for code that calls itself."""
    level: list[Any] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        for wrong in (name for each in level if isinstance(each, dict) for name in each if not isinstance(name, str)):
            raise ValueError(f"the name {wrong!r:.60} is no text; put it in quotes")
        for wrong in (each for each in level if isinstance(each, float) and not isfinite(each)):
            raise ValueError(f"{wrong} is no number of JSON; leave it out")
        if not level:
            return
        level = [value for each in level for value in _values_in(each)]
    raise ValueError(
        f"nested more than {MAX_SCHEMA_DEPTH} levels deep; name parts of the schema in $defs and refer to them"
    )


def _values_in(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


class StructuredOutputs(Section):
    """The form that an answer must have: one of `json`, `regex`, `choice` and `grammar`, with vLLM's names."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=False)

    json_schema: Annotated[JsonValue, BeforeValidator(_as_schema)] = Field(
        None,
        alias="json",
        description="A JSON Schema, or `true` for any object: the answer is JSON that conforms to it. The job's may be "
        "the path of a .json or .yaml file, and from Python a pydantic model.",
    )
    regex: str | None = Field(None, description="The whole answer matches this regular expression.")
    choice: _Texts | None = Field(None, description="The answer is one of these texts.")
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
        try:
            self.model_dump_json()
        except PydanticSerializationError:
            raise ValueError(f"{given[0]}: holds half of a surrogate pair, which is no character; remove it") from None
        return self

    def _form(self, name: str) -> object:
        return getattr(self, "json_schema" if name == "json" else name)
