"""Why a spec is not valid, a line for each field: what it holds, what is allowed, and the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def problems(error: ValidationError, model: type[BaseModel], whole: str = "") -> list[str]:
    """Why a mapping is not valid for `model`, a line for each field; `whole` names what is wrong with no one field."""
    return [_problem(detail, model, whole) for detail in error.errors()]


def _problem(detail: Mapping[str, Any], model: type[BaseModel], whole: str) -> str:
    location = [str(part) for part in detail["loc"] if not str(part).startswith(("function-", "tagged-"))]
    field = ".".join(location) or whole
    if detail["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{field}: got {detail['input']!r}; unknown key; {hint}allowed: {', '.join(known)}"
    if detail["type"] == "missing":
        return f"{field}: missing; it is required"
    if detail["type"] == "value_error":
        return f"{field}: {detail['ctx']['error']}".removeprefix(": ")
    if detail["type"] == "literal_error":
        return _literal_problem(field, detail)
    allowed = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{field}: got {detail['input']!r}; allowed: {allowed}"


def _literal_problem(field: str, detail: Mapping[str, Any]) -> str:
    choices = detail["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
    near = difflib.get_close_matches(str(detail["input"]), choices, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{field}: got {detail['input']!r}; allowed: {', '.join(choices)}{hint}"


def _known_keys(model: type[BaseModel], section: Sequence[str]) -> list[str]:
    for key in section:
        annotation = model.model_fields[key].annotation
        options = (annotation, *get_args(annotation))  # of a section that may be absent
        models = [each for each in options if isinstance(each, type) and issubclass(each, BaseModel)]
        if not models:
            return []
        model = models[0]
    return [field.alias or name for name, field in model.model_fields.items()]
