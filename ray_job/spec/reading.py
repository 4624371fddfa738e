"""A spec's YAML file, and what the command line changes in it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ray_job.errors import SpecError
from ray_job.spec.generation import LENGTH_NAMES
from ray_job.spec.plain_yaml import load_plain_yaml

_FORM = ["generation", "structured_outputs"]  # read as `plain_yaml` does


def load_yaml(path: Path, sections: Iterable[str]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.safe_load(text)
    except FileNotFoundError:
        raise SpecError(["no such file; write one or start from `python -m ray_job schema`"], str(path)) from None
    except OSError as error:
        raise SpecError([f"cannot be read: {error.strerror}"], str(path)) from None
    except UnicodeDecodeError as error:
        raise SpecError([f"is not UTF-8 text: {error}"], str(path)) from None
    except yaml.YAMLError as error:
        raise SpecError([f"is not YAML: {error}"], str(path)) from None
    except RecursionError:
        raise SpecError(["is nested too deeply"], str(path)) from None
    if not isinstance(data, dict):
        raise SpecError(["must be a mapping with the sections " + ", ".join(sections)], str(path))
    generation = data.get(_FORM[0])
    if isinstance(generation, dict) and _FORM[1] in generation:
        generation[_FORM[1]] = load_plain_yaml(text)[_FORM[0]][_FORM[1]]
    return data


def apply_override(data: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    keys = name.split(".")
    if not equals or not all(keys):
        raise SpecError([f"{override!r} is not of the form section.key=value"], "--set")
    section: Any = data
    for key in keys[:-1]:
        section = section.setdefault(key, {}) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        raise SpecError([f"{name}: {'.'.join(keys[:-1])} is not a section"], "--set")
    try:
        value = load_plain_yaml(text) if keys[:2] == _FORM else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise SpecError([f"{name}: {text!r} is not a YAML value"], "--set") from None
    if keys[:-1] == ["generation"] and keys[-1] in LENGTH_NAMES:  # else the file's would contradict it
        for other in LENGTH_NAMES:
            section.pop(other, None)
    section[keys[-1]] = value
