"""The parts a prompt is made of, and the two ways to read them out of a string.

What a user or a data set wrote travels as `Text`, which is never searched for special tokens or picture tags.
Only a trusted string, such as the job's own prompt template, goes through `parse_markup` or `parse_tags`.
Knows no tokenizer: which strings are special tokens is told by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Text:
    """Plain characters. `<|end|>` in here is seven characters, not a token."""

    text: str


@dataclass(frozen=True)
class Special:
    """One special token by its own spelling, such as `<|user|>`."""

    token: str


@dataclass(frozen=True)
class ImageTag:
    """The place of a picture. `index` counts from 1, as in `<|image_1|>`."""

    index: int


Part: TypeAlias = Text | Special | ImageTag
Role: TypeAlias = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: Role
    parts: tuple[Part, ...]


_IMAGE_TAG = re.compile(r"<\|image_(\d+)\|>")


def parse_tags(text: str) -> list[Part]:
    """Splits a trusted string at `<|image_N|>`; all else is Text. Empty pieces are left out."""
    parts: list[Part] = []
    end = 0
    for match in _IMAGE_TAG.finditer(text):
        parts += [Text(text[end : match.start()]), ImageTag(int(match[1]))]
        end = match.end()
    parts.append(Text(text[end:]))
    return [part for part in parts if part != Text("")]


def parse_specials(text: str, specials: Collection[str]) -> list[Part]:
    """Splits a trusted string at special tokens only; a picture tag in it stays text.

    Where two special tokens start at the same place the longer one is taken, as the official tokenizer does.
    """
    if not specials:
        return [Text(text)] if text else []
    by_length = sorted(specials, key=len, reverse=True)
    pattern = re.compile("(" + "|".join(re.escape(token) for token in by_length) + ")")
    # With one group, re.split puts the matches at the odd places.
    pieces = enumerate(pattern.split(text))
    return [Special(piece) if place % 2 else Text(piece) for place, piece in pieces if piece]


def parse_markup(text: str, specials: Collection[str]) -> list[Part]:
    """Splits a trusted string in the official prompt format into pictures, special tokens and text.

    Picture tags are found first and special tokens in what is left, as the official processor does.
    """
    parts: list[Part] = []
    for part in parse_tags(text):
        parts += parse_specials(part.text, specials) if isinstance(part, Text) else [part]
    return parts
