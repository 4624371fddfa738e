"""What a tokenizer's ids write into an answer, found by asking its decoder rather than by its name.

A grammar follows bytes, and an answer is what decoding makes of its ids. The two are the same but for ids that decode
to nothing or to something else, which no answer with a form may hold, and for the first id: tokenizers in the manner of
sentencepiece drop the space that it begins with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import llguidance
import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.int32]  # W words: of token t, bit t mod 32 of word t // 32
_METASPACE = "Metaspace"
_LETTERS = range(ord("A"), ord("z") + 1)


@dataclass(frozen=True, slots=True)
class WrittenIds:
    """Ids by what they write; stop ids are with those that write just their bytes."""

    anywhere_W: Mask  # just their bytes, behind another
    of_first: tuple[Mask, ...]  # as the first: just their bytes; where there are such, those whose space is dropped
    by_bytes: Mapping[bytes, int]  # of `anywhere_W`

    def longest_at_start_of(self, data: bytes) -> int | None:
        """The id that writes most of the beginning; None where there is none."""
        return next((self.by_bytes[data[:n]] for n in range(len(data), 0, -1) if data[:n] in self.by_bytes), None)


def readable(tokenizer_json: str) -> str:
    """The tokenizer as llguidance reads it: of decoders it does not know Metaspace, which writes a space for `▁`."""
    if _METASPACE not in tokenizer_json:
        return tokenizer_json
    content = json.loads(tokenizer_json)
    decoder = content["decoder"] or {}
    steps = decoder.get("decoders", [decoder])
    if not any(step.get("type") == _METASPACE for step in steps):
        return tokenizer_json
    spaces = [step["replacement"] for step in steps if step.get("type") == _METASPACE]
    written = [{"type": "Replace", "pattern": {"String": space}, "content": " "} for space in spaces]
    content["decoder"] = {"type": "Sequence", "decoders": [*written, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    return json.dumps(content)


def written_ids(
    tokenizer: llguidance.LLTokenizer,
    num_ids: int,
    stop_ids: Collection[int],
    decode: Callable[[Sequence[int]], str],
) -> WrittenIds:
    """What each id of a model writes.

    Args:
        tokenizer: tells each id's bytes, and which ids are special.
        num_ids: of the model; its tokenizer may know fewer or more.
        stop_ids: ids that end an answer.
        decode: ids to the text of an answer.

    Raises:
        ValueError: no id writes a letter alone.
    """
    known = range(min(num_ids, tokenizer.vocab_size))
    stops = frozenset(stop_ids)
    data = {i: tokenizer.decode_bytes([i]) for i in known if i not in stops and not tokenizer.is_special_token(i)}
    letter = next((i for i, own in data.items() if len(own) == 1 and own[0] in _LETTERS), None)
    if letter is None or not decode([letter]):
        raise ValueError("no token of it is a letter alone")
    texts = {i: text for i, own in data.items() if (text := _text(own)) is not None}
    differing = set(_differing(list(texts), texts, letter, decode))
    anywhere = [i for i in data if i not in differing and data[i]]
    after = decode([letter])
    whole: list[int] = []
    shortened: list[int] = []
    for i in anywhere:
        expected = texts.get(i, "") + after
        if " " not in expected or (found := decode([i, letter])) == expected:
            whole.append(i)
        elif " " + found == expected:
            shortened.append(i)
    if shortened:  # so it is with spaces before a part of a character
        parts = {i for i in whole if i not in texts and data[i].startswith(b" ")}
        whole, shortened = [i for i in whole if i not in parts], sorted({*shortened, *parts})
    num_words = -(-num_ids // 32)
    of_first = [mask_of([*whole, *stops], num_words)]
    if shortened:
        of_first.append(mask_of(shortened, num_words))
    return WrittenIds(mask_of([*anywhere, *stops], num_words), tuple(of_first), {data[i]: i for i in anywhere})


def _text(data: bytes) -> str | None:
    """None for a part of a character."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _differing(
    ids: Sequence[int], texts: dict[int, str], letter: int, decode: Callable[[Sequence[int]], str]
) -> Iterator[int]:
    """Ids that behind another do not write their bytes: searched by halves, since mostly there is none."""
    if not ids or decode([letter, *ids]) == decode([letter]) + "".join(texts[i] for i in ids):
        return
    if len(ids) == 1:
        yield ids[0]
        return
    half = len(ids) // 2
    yield from _differing(ids[:half], texts, letter, decode)
    yield from _differing(ids[half:], texts, letter, decode)


def mask_of(ids: Collection[int], num_words: int) -> Mask:
    """These ids alone."""
    bits = np.zeros(num_words * 32, np.uint8)
    bits[list(ids)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def has(mask_W: Mask, token_id: int) -> bool:
    """Whether an id is one of a mask's."""
    return 0 <= token_id < 32 * len(mask_W) and bool(mask_W[token_id // 32] >> (token_id % 32) & 1)
