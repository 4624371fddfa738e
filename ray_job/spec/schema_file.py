"""The schema of a job's answers, wherever the job has it: inline, in a file, or as a pydantic model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema

from ray_job.spec.plain_yaml import load_plain_yaml

_SUFFIXES = (".json", ".yaml", ".yml")


def read_schema(value: Any) -> Any:
    """The schema itself, so that it travels with the job; what is neither a file nor a model is given back.

    Raises:
        ValueError: the file cannot be read or holds something else, or the model has no schema.
    """
    if isinstance(value, type) and issubclass(value, BaseModel):
        try:
            return value.model_json_schema()
        except PydanticInvalidForJsonSchema as error:
            raise ValueError(f"{value.__name__}: {str(error).splitlines()[0]}") from None
    if isinstance(value, Path):
        return _of_file(value)
    if not isinstance(value, str):
        return value
    return _parsed(value, ".json", "") if value.lstrip().startswith("{") else _of_file(Path(value))


def _of_file(path: Path) -> Any:
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{str(path)!r} is no schema; give it inline, or the path of a .json or .yaml file")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; give the path from the folder where the job is started") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    schema = _parsed(text, path.suffix, f"{path}: ")
    if not isinstance(schema, dict):
        raise ValueError(f"{path}: holds no JSON Schema, which is an object, but {schema!r:.60}")
    return schema


def _parsed(text: str, suffix: str, where: str) -> Any:
    try:
        return json.loads(text) if suffix == ".json" else load_plain_yaml(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}is not {suffix[1:].upper()}: {error}") from None
