"""A row's generation parameters: the job's, with those on top that a column of the row holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ray_job.errors import ErrorCode, RowError
from ray_job.prompts.json_text import parse_json
from ray_job.spec import GenerationParams, StructuredOutputs, problems

_FORM = "structured_outputs"
_MOST_KEPT = 64


class RowParams:
    """Reads them; rows that hold the same text share what it says.

    Args:
        job: the job's.
        column: with the rows' own; None: there are none.
    """

    def __init__(self, job: GenerationParams, column: str | None) -> None:
        self._job = job
        self._column = column
        self._kept: dict[str, GenerationParams] = {}

    def of(self, row: Mapping[str, Any]) -> GenerationParams:
        """The row's; the job's own object where it overrides nothing, since its column is empty or null.

        Raises:
            RowError: PARAMS_INVALID, naming the column and what is wrong with it.
        """
        value = row.get(self._column) if self._column is not None else None
        if value is None or (isinstance(value, str) and not value.strip()):
            return self._job
        if isinstance(value, str) and value in self._kept:
            return self._kept[value]
        params = self._read(value)
        if isinstance(value, str):
            if len(self._kept) == _MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[value] = params
        return params

    def _read(self, value: Any) -> GenerationParams:
        try:
            overrides = parse_json(value, ErrorCode.PARAMS_INVALID) if isinstance(value, str) else value
            if overrides is None:
                return self._job
            if not isinstance(overrides, dict):
                raise ValueError(f"expected an object, got {type(overrides).__name__}")
            given = {key: each for key, each in overrides.items() if each is not None}
            if isinstance(form := given.get(_FORM), dict):
                given[_FORM] = _row_form(form, is_struct=not isinstance(value, str))
            params = self._job.overridden(given)
            if given.get(_FORM) is not None and params.structured_outputs is not None:
                _check_form(params.structured_outputs)
            return params
        except RowError as error:
            raise RowError(error.code, f"column {self._column!r}: {error.message}", error.stage) from None
        except ValidationError as error:
            text = "; ".join(problems(error, GenerationParams))
            raise RowError(ErrorCode.PARAMS_INVALID, f"column {self._column!r}: {text}") from None
        except ValueError as error:
            raise RowError(ErrorCode.PARAMS_INVALID, f"column {self._column!r}: {error}") from None


def _row_form(form: dict[str, Any], is_struct: bool) -> dict[str, Any]:
    """A form with its schema as an object, which a row may hold as JSON text, too.

    Structs of Arrow have the keys of all rows, with nulls in those that have them not. A schema that means a null
    itself, such as a const, is JSON text.
    """
    form = _without_nulls(form) if is_struct else {key: value for key, value in form.items() if value is not None}
    if isinstance(schema := form.get("json"), str):
        try:
            form["json"] = parse_json(schema, ErrorCode.PARAMS_INVALID)
        except RowError as error:
            raise RowError(error.code, f"{_FORM}.json: {error.message}", error.stage) from None
    return form


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _check_form(form: StructuredOutputs) -> None:
    from ray_job.structured.grammar import FormError, grammar_of  # where a row has one

    try:
        grammar_of(form)
    except FormError as error:
        raise RowError(ErrorCode.PARAMS_INVALID, "; ".join(f"{_FORM}.{each}" for each in error.problems)) from None
