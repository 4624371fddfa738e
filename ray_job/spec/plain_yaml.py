"""YAML whose words are texts: of an unquoted value only `true`, `false`, `null` and numbers in JSON's way are not.

By YAML's older rules, which other fields are read by, `no` is false, `12:30` is 750 and 2026-11-29 is a date: wrong for
the choices of an answer and for the names of its properties.
"""

from __future__ import annotations

import re
from typing import Any

import yaml


class _PlainLoader(yaml.SafeLoader):
    pass


_PlainLoader.yaml_implicit_resolvers = {}
for _tag, _pattern in {
    "bool": "true|false",
    "null": "null|~|",
    "int": "-?(0|[1-9][0-9]*)",
    "float": r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?",
    "merge": "<<",
}.items():
    _PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z"), None)


def load_plain_yaml(text: str) -> Any:
    """The value a text holds. Raises ValueError."""
    try:
        return yaml.load(text, _PlainLoader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
