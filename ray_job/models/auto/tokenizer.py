"""Parts of a prompt to ids, as the library's tokenizer gives them for the whole text, and ids back to text.

Control tokens are kept apart from text: a second tokenizer reads the text, which knows none of them but a separator
that stands where each of them is. So it cuts, normalises and merges as the whole one does, and no text becomes a
control token, whatever it spells. Added tokens that are ordinary text to the model, such as Gemma's line breaks and
tags of HTML, are tokens in it as well.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from tokenizers import AddedToken, Tokenizer

from ray_job.errors import ErrorCode, ModelError, RowError
from ray_job.prompts.parts import Special, Text

# What stands for control tokens, by whether they swallow white space before and after them. All are noncharacters:
# text that is interchanged has none.
_SEPARATORS = {(False, False): "\U0001fffe", (True, False): "\U0001ffff"}
_SEPARATORS |= {(False, True): "\U0002fffe", (True, True): "\U0002ffff"}
_UNSPEAKABLE = "\U0003fffe"  # begins the names of tokens that no text may become
NONCHARACTERS = frozenset([*_SEPARATORS.values(), _UNSPEAKABLE])


@dataclass(frozen=True, slots=True)
class Shown:
    """Places of a picture's features."""

    index: int  # from 1
    num_tokens: int
    token: str  # that the model itself has there


Piece: TypeAlias = Text | Special | Shown


class ChatTokenizer:
    """Text and control tokens to ids and back.

    Args:
        library: the library's tokenizer.
        media: tokens that stand for pictures and the like.
        written: what the chat template writes by itself.

    A text never becomes one of these tokens, one that is special, or an added one that the template writes, such as
    `<think>`. White space is text always.
    """

    def __init__(self, library: Any, media: Collection[str], written: str) -> None:
        if not library.is_fast:
            raise ModelError(f"{library.name_or_path} has no tokenizer.json; slow tokenizer files are not read")
        self._whole: Tokenizer = library.backend_tokenizer
        self._bos: str | None = library.bos_token
        self._added: dict[str, AddedToken] = {}
        self._ids: dict[str, int] = {}
        unknown = library.unk_token
        for token_id, token in self._whole.get_added_tokens_decoder().items():
            name = token.content
            is_control = token.special or name in media or (name in written and not name.isspace())
            if is_control and name != unknown:
                self._ids[token.content], self._added[token.content] = token_id, token
        self._control_ids = frozenset(self._ids.values())

    @property
    def control(self) -> frozenset[str]:
        """The tokens that a text never becomes."""
        return frozenset(self._ids)

    def id_of(self, token: str) -> int:
        """Id of a control token. Raises ModelError if there is none."""
        if token not in self._ids:
            raise ModelError(f"the tokenizer has no special token {token!r}; it has {', '.join(self._ids)}")
        return self._ids[token]

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Any control token, the longest first."""
        return re.compile(one_of(self._ids))

    def split(self, text: str) -> Iterator[Text | Special]:
        """A trusted text with its control tokens."""
        end = 0
        for match in self.pattern.finditer(text):
            if match.start() > end:
                yield Text(text[end : match.start()])
            yield Special(match[0])
            end = match.end()
        if end < len(text):
            yield Text(text[end:])

    def encode(self, pieces: Sequence[Piece]) -> list[int]:
        """Ids of a whole prompt, −k for the features of picture k.

        Unless it starts with the token that begins a text, what the tokenizer puts around a text is added, as the
        library does.

        Raises:
            RowError: a text holds one of two noncharacters, or can be spelled in no other way than as a control token.
        """
        text, between = self._separated(pieces)
        ids = self._text_ids(text)
        if not self._control_ids.isdisjoint(ids):  # the vocabulary has the token as a word
            text, between = self._broken(text, between)
            ids = self._text_ids(text)
            if not self._control_ids.isdisjoint(ids):
                raise RowError(ErrorCode.ROW_MALFORMED, "the tokenizer makes a control token of a part of this text")
        separated = iter(between)
        ids = [each for token in ids for each in (next(separated) if token in self._separator_ids else (token,))]
        if pieces and pieces[0] == Special(self._bos or ""):
            return ids
        before, after = self._around
        return [*before, *ids, *after]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens; ids that the vocabulary does not have give nothing."""
        text: str = self._whole.decode(list(ids), skip_special_tokens=True)
        return text

    def to_json(self) -> str:
        """The whole tokenizer, without padding and truncation."""
        own = copy.copy(self._whole)
        own.no_padding()
        own.no_truncation()
        text: str = own.to_str()
        return text

    def _separated(self, pieces: Iterable[Piece]) -> tuple[str, list[list[int]]]:
        """The texts with separators between, and the ids that each separator stands for."""
        text = ""
        between: list[list[int]] = []
        for is_text, run in itertools.groupby(pieces, lambda piece: isinstance(piece, Text)):
            if is_text:
                text += "".join(piece.text for piece in run if isinstance(piece, Text))
                continue
            marks = [piece for piece in run if not isinstance(piece, Text)]
            between.append([each for mark in marks for each in self._ids_of(mark)])
            text += _SEPARATORS[self._added[marks[0].token].lstrip, self._added[marks[-1].token].rstrip]
        if sum(map(text.count, _SEPARATORS.values())) > len(between) or _UNSPEAKABLE in text:
            raise RowError(ErrorCode.ROW_MALFORMED, "a text holds a noncharacter, such as U+1FFFE; take it out")
        return text, between

    def _ids_of(self, mark: Special | Shown) -> list[int]:
        token_id = self.id_of(mark.token)
        return [-mark.index] * mark.num_tokens if isinstance(mark, Shown) else [token_id]

    def _broken(self, text: str, between: Sequence[list[int]]) -> tuple[str, list[list[int]]]:
        """The same with each control token that a text spells cut after its first character."""
        entries = iter(between)
        found: list[list[int]] = []
        broken = ""
        separator = _SEPARATORS[False, False]
        for match in re.finditer(f"{self.pattern.pattern}|.", text, re.DOTALL):
            piece = match[0]
            if piece in _SEPARATORS.values():
                found.append(next(entries))
            elif len(piece) > 1:
                found.append([])
                piece = piece[0] + separator + piece[1:]
            broken += piece
        return broken, found

    def _text_ids(self, text: str) -> list[int]:
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _plain(self) -> Tokenizer:
        """The tokenizer that knows no control token, and separators instead."""
        content = json.loads(self._whole.to_str())
        vocabulary = content["model"]["vocab"]
        words = set(vocabulary if isinstance(vocabulary, dict) else (word for word, _ in vocabulary))
        added = []
        for token in sorted(content["added_tokens"], key=lambda token: token["id"]):
            if token["content"] not in self._ids:
                added.append(token)
            elif token["content"] not in words:  # its id is the next one: another name keeps those after it
                added.append({**token, "content": f"{_UNSPEAKABLE}{token['id']}"})
        for token_id, ((lstrip, rstrip), separator) in zip(self._separator_ids, _SEPARATORS.items(), strict=True):
            flags = {"lstrip": lstrip, "rstrip": rstrip, "single_word": False, "normalized": False, "special": True}
            added.append({"id": token_id, "content": separator, **flags})
        changed = {"added_tokens": added, "post_processor": None, "truncation": None, "padding": None}
        plain = Tokenizer.from_str(json.dumps({**content, **changed}))
        shifted = [token["content"] for token in added if plain.token_to_id(token["content"]) != token["id"]]
        if shifted:
            raise ModelError(f"tokenizer.json numbers its added tokens in an unknown way: {shifted[0]!r} among others")
        return plain

    @cached_property
    def _separator_ids(self) -> range:
        first = max(self._whole.get_vocab(with_added_tokens=True).values()) + 1
        return range(first, first + len(_SEPARATORS))

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """Ids that the tokenizer puts before and after a text."""
        bare, whole = (self._whole.encode("a", add_special_tokens=added).ids for added in (False, True))
        start = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
        return whole[:start], whole[start + len(bare) :]


def one_of(tokens: Iterable[str]) -> str:
    """A regular expression for any of the tokens, the longest that fits; for none of them where there is none."""
    return "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or "(?!)"
