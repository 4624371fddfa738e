"""Checks of values that come from a model's JSON files: each says the field, the value, and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ray_job.errors import ModelError

MAX_COUNT = (
    2**24
)  # no size of a model is larger; beyond it torch would take the memory before the weights are looked at
MAX_LAYERS = 1000
ACTIVATION_NAMES = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu")
_MAX_SHOWN = 80


class FieldError(ModelError):
    """A field of a model's JSON file has a value that is not allowed. Its reader adds the file's name."""


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raises FieldError unless `condition` holds."""
    if not condition:
        shown = repr(value)
        shown = shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + "…"
        raise FieldError(f"{name} is {shown}; allowed: {allowed}")


def is_count(value: object, largest: int = MAX_COUNT) -> bool:
    """Whether a value is a whole number from 1 to `largest`. JSON's `true` is none."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest


def is_number(value: object) -> bool:
    """Whether a value is a finite number that float32 can hold. JSON's `true` is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 2**127 and math.isfinite(value)


def require_counts(config: object, names: Iterable[str], prefix: str = "") -> None:
    """Raises FieldError for the first of these attributes that is not a count."""
    for name in names:
        value = getattr(config, name)
        allowed = "a whole number above 0" + (f", at most {MAX_COUNT:,}" if is_count(value, 10**100) else "")
        require(is_count(value), prefix + name, value, allowed)


def require_above_zero(config: object, names: Iterable[str], prefix: str = "") -> None:
    """Raises FieldError for the first of these attributes that is not a number above 0."""
    for name in names:
        value = getattr(config, name)
        require(is_number(value) and value > 0, prefix + name, value, "a number above 0")


def require_activation(name: object, prefix: str = "") -> None:
    """Raises FieldError unless this is the name of an activation function (`activations.py`)."""
    is_known = isinstance(name, str) and name in ACTIVATION_NAMES
    require(is_known, f"{prefix}hidden_act", name, "one of " + ", ".join(ACTIVATION_NAMES))


def require_fixed(found: Mapping[str, Any], fixed: Mapping[str, Any], prefix: str = "") -> None:
    """Raises FieldError for a key that is there with another value than the only one that is supported."""
    for name, only in fixed.items():
        if found.get(name) is not None:
            require(found[name] == only, prefix + name, found[name], repr(only))


def section(found: Mapping[str, Any], name: str, prefix: str = "") -> Mapping[str, Any]:
    """The object under a key, empty where it is absent or null. Raises FieldError for anything else."""
    value = found.get(name)
    require(value is None or isinstance(value, dict), prefix + name, value, "a JSON object")
    return value or {}
