"""The parts a prompt is made of, and how they are read out of a string.

Text from data travels as `Text`, which is never searched for special tokens or picture tags. Only a trusted string,
such as the job's own prompt template, goes through `parse_markup` or `parse_tags`. Nothing here knows a tokenizer:
the caller says which strings are special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Text:
    """Plain characters: `<|end|>` in it is seven characters, not a token."""

    text: str


@dataclass(frozen=True)
class Special:
    """One special token by its spelling, such as `<|user|>`."""

    token: str


@dataclass(frozen=True)
class ImageTag:
    """Where a picture stands; `index` counts from 1, as in `<|image_1|>`."""

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
    """Splits a trusted string at `<|image_N|>`; everything else is Text, and empty pieces are left out."""
    parts: list[Part] = []
    end = 0
    for match in _IMAGE_TAG.finditer(text):
        parts += [Text(text[end : match.start()]), ImageTag(int(match[1]))]
        end = match.end()
    parts.append(Text(text[end:]))
    return [part for part in parts if part != Text("")]


def parse_specials(text: str, specials: Collection[str]) -> list[Part]:
    """Splits a trusted string at special tokens alone; a picture tag stays text.

    Where two special tokens begin at one place the longer counts, as in the official tokenizer.
    """
    if not specials:
        return [Text(text)] if text else []
    by_length = sorted(specials, key=len, reverse=True)
    pattern = re.compile("(" + "|".join(re.escape(token) for token in by_length) + ")")
    # With one group in the pattern, re.split puts the matches at the odd places.
    pieces = enumerate(pattern.split(text))
    return [Special(piece) if place % 2 else Text(piece) for place, piece in pieces if piece]


def parse_markup(text: str, specials: Collection[str]) -> list[Part]:
    """Splits a trusted string in the official prompt format into picture tags, special tokens and text.

    Picture tags are found first, then special tokens in the rest, as the official processor does it.
    """
    parts: list[Part] = []
    for part in parse_tags(text):
        parts += parse_specials(part.text, specials) if isinstance(part, Text) else [part]
    return parts
