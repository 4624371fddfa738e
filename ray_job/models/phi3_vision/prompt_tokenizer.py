"""Text and special tokens to ids, kept apart: plain text is read by a tokenizer that knows no special token.

Two tokenizers from one tokenizer.json. The whole one finds ids of special tokens and decodes; the other has
its added tokens removed and reads `Text`. Together they give the official ids for any split of a string
into text and special tokens, measured by tests/models/phi3_vision/test_processor.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from ray_job.errors import ModelError
from ray_job.models.json_file import read_json_object
from ray_job.prompts.parts import Special, Text

# What a special token with `rstrip` swallows after it: Unicode White_Space. Python's own strip() takes four
# control characters more.
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


_NO_ADDED: Mapping[str, Any] = {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}


class PromptTokenizer:
    """Raises ModelError if `path` is absent or not a tokenizer.json."""

    def __init__(self, path: Path) -> None:
        self._path = path
        content = read_json_object(path, "slow tokenizer files are not read")
        self._whole = self._tokenizer(content)
        self._plain = self._tokenizer({**content, **_NO_ADDED})
        self._ids: dict[str, int] = {}
        self._added: dict[str, AddedToken] = {}
        for token_id, token in self._whole.get_added_tokens_decoder().items():
            self._ids[token.content], self._added[token.content] = token_id, token
        unknown = content["model"].get("unk_token")
        self._never_text = {token_id for name, token_id in self._ids.items() if name != unknown}

    def _tokenizer(self, content: Mapping[str, Any]) -> Tokenizer:
        try:
            return Tokenizer.from_str(json.dumps(content))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(
                f"{self._path} is not a tokenizer.json as the tokenizers library reads it: {error}; download the "
                "model's files again"
            ) from error

    @property
    def special_tokens(self) -> frozenset[str]:
        """Every added token, also those the file does not flag as special, such as `</s>`."""
        return frozenset(self._ids)

    def require(self, *tokens: str) -> None:
        """Raises ModelError that lists the tokens the file lacks."""
        missing = [token for token in tokens if token not in self._ids]
        if missing:
            raise ModelError(f"{self._path} lacks the special tokens {', '.join(missing)}")

    def special_id(self, token: str) -> int:
        """Id of a special token. Raises ModelError if there is none."""
        self.require(token)
        return self._ids[token]

    def encode(self, parts: Sequence[Text | Special]) -> list[int]:
        """Ids of one piece of a prompt, without `<s>`. Neighbouring texts are read as one."""
        ids: list[int] = []
        text = ""
        swallows = False  # whether the special token before `text` takes the white space after it
        for part in parts:
            if isinstance(part, Text):
                text += part.text
                continue
            token_id = self.special_id(part.token)
            token = self._added[part.token]
            text = text.lstrip(_WHITE_SPACE) if swallows else text
            ids += self._encode_text(text.rstrip(_WHITE_SPACE) if token.lstrip else text)
            ids.append(token_id)
            text, swallows = "", token.rstrip
        return ids + self._encode_text(text.lstrip(_WHITE_SPACE) if swallows else text)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Text of `ids`; ids the vocabulary does not have give nothing. Raises ValueError for negative ones."""
        if any(token_id < 0 for token_id in ids):
            raise ValueError("negative ids stand for pictures and have no text; cut the prompt off first")
        text: str = self._whole.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def _encode_text(self, text: str) -> list[int]:
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if not self._never_text.isdisjoint(ids):
            raise ModelError(f"{self._path} makes a special token out of plain text; it cannot be used safely")
        return ids
