"""Parts of a prompt to ids, as the library's tokenizer gives them for the whole text, and ids back to text.

Control tokens are kept apart from text: a second tokenizer reads the text, which knows none of them but a separator
that stands where each of them is. So it cuts, normalises and merges as the whole one does, and no text becomes a
control token, whatever it spells. Added tokens that are ordinary text to the model, such as Gemma's line breaks and
tags of HTML, are tokens in it as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from tokenizers import AddedToken, Tokenizer

from ray_job.errors import ErrorCode, ModelError, RowError
from ray_job.prompts.parts import Special, Text

SEPARATOR, _UNSPEAKABLE = "\U0010fffe", "\U0010ffff"  # noncharacters: text that is interchanged has none
_NONCHARACTERS = {SEPARATOR, _UNSPEAKABLE}
_NO_CHARACTERS = "a text holds U+10FFFE or U+10FFFF, which are no characters"
# What a control token with `rstrip` swallows after it: Unicode White_Space. Python's own strip() takes four more.
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


@dataclass(frozen=True, slots=True)
class Shown:
    """Places of a picture's features."""

    index: int  # from 1
    num_tokens: int


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
        ids = [each for token in ids for each in (next(separated) if token == self._separator_id else (token,))]
        if pieces and pieces[0] == Special(self._bos or ""):
            return ids
        before, after = self._around
        return [*before, *ids, *after]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens; ids that the vocabulary does not have give nothing."""
        text: str = self._whole.decode(list(ids), skip_special_tokens=True)
        return text

    def _separated(self, pieces: Iterable[Piece]) -> tuple[str, list[list[int]]]:
        """The texts with separators between, and the ids that each separator stands for."""
        texts: list[str] = [""]
        between: list[list[int]] = []
        swallows = False  # whether the control token before a text takes the white space after it
        for piece in pieces:
            if isinstance(piece, Text):
                if not _NONCHARACTERS.isdisjoint(piece.text):
                    raise RowError(
                        ErrorCode.ROW_MALFORMED, "a text holds U+10FFFE or U+10FFFF, which are no characters"
                    )
                texts[-1] += piece.text.lstrip(_WHITE_SPACE) if swallows and not texts[-1] else piece.text
                continue
            ids = [-piece.index] * piece.num_tokens if isinstance(piece, Shown) else [self.id_of(piece.token)]
            token = self._added[piece.token] if isinstance(piece, Special) else None
            if token is not None and token.lstrip:
                texts[-1] = texts[-1].rstrip(_WHITE_SPACE)
            if between and not texts[-1]:
                between[-1] += ids
            else:
                between.append(ids)
                texts.append("")
            swallows = token is not None and token.rstrip
        return SEPARATOR.join(texts), between

    def _broken(self, text: str, between: Sequence[list[int]]) -> tuple[str, list[list[int]]]:
        """The same with each control token that a text spells cut after its first character."""
        entries = iter(between)
        found: list[list[int]] = []
        broken = ""
        for match in re.finditer(f"{SEPARATOR}|{self.pattern.pattern}|.", text, re.DOTALL):
            piece = match[0]
            if piece == SEPARATOR:
                found.append(next(entries))
            elif len(piece) > 1:
                found.append([])
                piece = piece[0] + SEPARATOR + piece[1:]
            broken += piece
        return broken, found

    def _text_ids(self, text: str) -> list[int]:
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _plain(self) -> Tokenizer:
        """The tokenizer that knows no control token, and the separator instead."""
        content = json.loads(self._whole.to_str())
        vocabulary = content["model"]["vocab"]
        words = set(vocabulary if isinstance(vocabulary, dict) else (word for word, _ in vocabulary))
        added = []
        for token in sorted(content["added_tokens"], key=lambda token: token["id"]):
            if token["content"] not in self._ids:
                added.append(token)
            elif token["content"] not in words:  # its id is the next one: another name keeps those after it
                added.append({**token, "content": f"{_UNSPEAKABLE}{token['id']}"})
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added.append({"id": self._separator_id, "content": SEPARATOR, "special": True, **flags})
        changed = {"added_tokens": added, "post_processor": None, "truncation": None, "padding": None}
        plain = Tokenizer.from_str(json.dumps({**content, **changed}))
        shifted = [token["content"] for token in added if plain.token_to_id(token["content"]) != token["id"]]
        if shifted:
            raise ModelError(f"tokenizer.json numbers its added tokens in an unknown way: {shifted[0]!r} among others")
        return plain

    @cached_property
    def _separator_id(self) -> int:
        return max(self._whole.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """Ids that the tokenizer puts before and after a text."""
        bare, whole = (self._whole.encode("a", add_special_tokens=added).ids for added in (False, True))
        start = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
        return whole[:start], whole[start + len(bare) :]


def one_of(tokens: Iterable[str]) -> str:
    """A regular expression for any of the tokens, the longest that fits; for none of them where there is none."""
    return "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or "(?!)"
