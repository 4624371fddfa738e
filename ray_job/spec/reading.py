"""A spec's YAML file, and what the command line changes in it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ray_job.errors import SpecError
from ray_job.spec.generation import LENGTH_NAMES


def load_yaml(path: Path, sections: Iterable[str]) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(["no such file; write one or start from `python -m ray_job schema`"], str(path)) from None
    except OSError as error:
        raise SpecError([f"cannot be read: {error.strerror}"], str(path)) from None
    except UnicodeDecodeError as error:
        raise SpecError([f"is not UTF-8 text: {error}"], str(path)) from None
    except yaml.YAMLError as error:
        raise SpecError([f"is not YAML: {error}"], str(path)) from None
    if not isinstance(data, dict):
        raise SpecError(["must be a mapping with the sections " + ", ".join(sections)], str(path))
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
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise SpecError([f"{name}: {text!r} is not a YAML value"], "--set") from None
    if keys[:-1] == ["generation"] and keys[-1] in LENGTH_NAMES:  # else the file's would contradict it
        for other in LENGTH_NAMES:
            section.pop(other, None)
    section[keys[-1]] = value
