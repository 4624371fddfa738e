"""What all sections of a spec have in common, and the types of their fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, WithJsonSchema, field_validator

from ray_job.redaction.text import public_uri


def has_half_pair(text: str) -> bool:
    """Whether half of a surrogate pair is in it, which no tokenizer takes."""
    return text.encode(errors="replace").decode() != text


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str | int | float) else value


def _one_or_many(kind: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": kind}, {"type": "array", "items": {"type": kind}}]})


Strings = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), _one_or_many("string")]


def _as_texts(value: object) -> object:
    """Numbers, times and truth values of YAML as texts; what is wrong is said without showing a value."""
    if not isinstance(value, Mapping) or not all(isinstance(each, str | int | float | date) for each in value.values()):
        raise ValueError("must be names with a text each")
    return {str(name): str(each).lower() if isinstance(each, bool) else str(each) for name, each in value.items()}


Ints = Annotated[tuple[int, ...], BeforeValidator(_as_tuple), _one_or_many("integer")]

StorageOptions = Annotated[dict[str, str], BeforeValidator(_as_texts)]
"""Options of a bucket, secrets among them."""


class Section(BaseModel):
    """Unknown keys are refused, and true or false where a number belongs; a text that spells a number is one.

    The latter since YAML reads `1e-5` as text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """What `repr` and a notebook show: no credentials."""
        for name, value in super().__repr_args__():
            if isinstance(value, tuple):
                yield name, tuple(public_uri(each) if isinstance(each, str) else each for each in value)
            else:
                yield name, public_uri(value) if isinstance(value, str) else value

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        assert info.field_name is not None
        values = value if isinstance(value, list | tuple) else [value]
        if _has_numbers(cls.model_fields[info.field_name].annotation) and any(isinstance(v, bool) for v in values):
            raise ValueError(f"got {value!r}; allowed: a number")
        return value


def _has_numbers(annotation: Any) -> bool:
    return annotation in (int, float) or any(map(_has_numbers, get_args(annotation)))
