"""The processor of any model that the library knows, from the checkpoint's own files, behind `models.processor`.

Pictures go through the library's classes on PIL, prompts through the model's own chat template; ids equal those of the
library's processor called on the whole conversation, measured by tests/models/auto/test_processor.py, but for two
differences on purpose: a `Text` never becomes a special token or a picture, and a template that writes today's date
gets one and the same day.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from ray_job.errors import ErrorCode, ModelError, RowError, first_line
from ray_job.models.auto import library
from ray_job.models.auto.chat import ChatTemplate, literals, template_of
from ray_job.models.auto.configuration import image_token_id
from ray_job.models.auto.normalization import Normalization
from ray_job.models.auto.picture_processor import PictureProcessor, check_options
from ray_job.models.auto.tokenizer import ChatTokenizer, Piece, Shown
from ray_job.models.auto.torchless import without_torch
from ray_job.models.json_file import read_json_object
from ray_job.models.processor import Placeholder, PreparedPicture, check_tags
from ray_job.models.quiet import quiet_torchao
from ray_job.prompts.parts import ImageTag, Message, Part, Special, Text

_OTHER_MEDIA = ("video_token", "audio_token")
_PROBE_SIZE = (100, 60)
_NO_LIMIT = 10**9  # a tokenizer's that states none


class LibraryProcessor:
    """Pickles as its folder and options, a few hundred bytes; files are read again where it is used, without torch."""

    def __init__(self, folder: str | os.PathLike[str], options: Mapping[str, Any], *, torchless: bool = False) -> None:
        self.folder = Path(folder)
        self.options = dict(options)
        self._torchless = torchless

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.folder, json.dumps(self.options))

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], options: Mapping[str, Any] | None = None
    ) -> LibraryProcessor:
        """Reads a checkpoint's small files.

        Args:
            folder: with config.json, tokenizer.json, a chat template, and the configuration of an image processor.
            options: of the image processor, instead of the files'.

        Raises:
            ModelError: a file is absent or broken, the model is none that shows pictures to a decoder, or an option is
                not the image processor's.
        """
        processor = cls(folder, options or {})
        check_options(processor._library, processor.options)
        try:
            processor.prepare(Image.new("RGB", _PROBE_SIZE))
        except RowError as error:
            stated = f" with model.processor_options {processor.options}" if options else ""
            raise ModelError(f"{folder}: its image processor prepares no picture{stated}: {error.message}") from None
        processor.encode_chat([Message("user", (Text("?"),))], [])
        processor._check_ids()
        return processor

    def prepare(self, image: Image.Image) -> PreparedPicture:
        """A picture's arrays by the names that the library's model takes, pixels as uint8 where they are whole numbers.

        Raises RowError IMAGE_TOO_NARROW.
        """
        arrays, text = self._pictures.prepare(image)
        return PreparedPicture(arrays, self._placeholder(text))

    def placeholder(self, width: int, height: int) -> Placeholder | None:
        """What stands for a picture of that size; None where only preparing it tells. Raises RowError."""
        text = self._pictures.text_of_size(width, height)
        return None if text is None else self._placeholder(text)

    @property
    def undone(self) -> Placeholder:
        """What stands for a picture that is prepared elsewhere: one token."""
        return Placeholder(1, self._feature_token)

    def page_size(self, width: float, height: float) -> tuple[int, int]:
        """Pixels, width and height, to draw a page at that has sides of this ratio. Raises RowError."""
        return self._pictures.page_size(width, height)

    @property
    def counts_by_size(self) -> bool:
        """Whether a picture's tokens follow from its size alone."""
        return self._pictures.counts_by_size

    @property
    def normalization(self) -> Normalization | None:
        """What is left to do with the pixels of prepared pictures; None where nothing is."""
        return self._pictures.normalization

    @property
    def takes_system(self) -> bool:
        """Whether the model's chat template has a place for a system prompt."""
        return self._chat.takes_system

    @property
    def special_tokens(self) -> Collection[str]:
        """The tokens that a part of the prompt may name: all that are special, but those that stand for pictures."""
        return self._tokenizer.control - self._media_tokens

    @property
    def pad_id(self) -> int:
        """An id to fill places with that nobody reads. A prompt may hold it: never derive a mask from it."""
        own = self._library.tokenizer.pad_token_id
        return int(min(self.stop_ids) if own is None else own)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer: those of generation_config.json, of the configuration and of the tokenizer."""
        path = self.folder / "generation_config.json"
        generation = read_json_object(path) if path.exists() else {}
        text = self._config.get_text_config(decoder=True)
        stated = [generation.get("eos_token_id"), getattr(text, "eos_token_id", None)]
        found = [each for value in stated for each in (value if isinstance(value, list) else [value])]
        found.append(self._library.tokenizer.eos_token_id)
        return frozenset(int(each) for each in found if each is not None)

    @cached_property
    def max_len(self) -> int:
        """Tokens of the longest row that the model can run, prompt and answer."""
        text = self._config.get_text_config(decoder=True)
        return int(getattr(text, "max_position_embeddings", None) or self._library.tokenizer.model_max_length)

    @cached_property
    def max_image_tokens(self) -> int:
        """Tokens of the picture that takes most, as far as common ratios of its sides tell."""
        return self._pictures.max_tokens

    def encode_chat(self, messages: Sequence[Message], placeholders: Sequence[Placeholder]) -> list[int]:
        """Token ids of a prompt that asks for an answer, by the model's own template.

        What the template writes for a picture stands on a line of its own where the template says so: a line break
        alone after a picture's tag, as other models want it, is left out.

        Raises:
            RowError: PROMPT_TAGS unless the picture tags are 1 to n, each once, and the template shows all of them;
                ROW_MALFORMED where the template refuses the messages; PROMPT_MISSING without messages.
        """
        messages = [_without_own_lines(message) for message in messages]
        tags = [part.index for message in messages for part in message.parts if isinstance(part, ImageTag)]
        check_tags(tags, len(placeholders))
        parts = self._chat.parts(messages)
        image = Special(self._library.image_token)
        if parts.count(image) != len(tags):
            raise RowError(
                ErrorCode.PROMPT_TAGS,
                f"the model's chat template shows {parts.count(image)} pictures of {len(tags)}; put them into messages "
                "of the user",
            )
        shown = iter(tags)
        pieces: list[Piece] = []
        for part in parts:
            pieces += self._features(index := next(shown), placeholders[index - 1]) if part == image else [part]
        return self._tokenizer.encode(pieces)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens; ids that the vocabulary does not have give nothing."""
        return self._tokenizer.decode(ids)

    def tokenizer_json(self) -> str:
        """The library's tokenizer, with what its other files add to its tokenizer.json."""
        return self._tokenizer.to_json()

    @cached_property
    def _library(self) -> Any:
        with quiet_torchao(), without_torch() if self._torchless else nullcontext():
            return library.load_processor(self.folder, self.options)

    @cached_property
    def _config(self) -> Any:
        import transformers

        try:
            return transformers.AutoConfig.from_pretrained(self.folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:
            raise ModelError(
                f"{self.folder / 'config.json'}: the library cannot read it: {first_line(error)}"
            ) from error

    @cached_property
    def _pictures(self) -> PictureProcessor:
        return PictureProcessor(self._library, self._feature_token, self.options)

    @cached_property
    def _feature_token(self) -> str:
        """The token whose places a picture's features take."""
        token_id = image_token_id(self._config)
        token = None if token_id is None else self._library.tokenizer.convert_ids_to_tokens(token_id)
        if token is None:
            raise ModelError(
                f"{self.folder / 'config.json'}: image_token_id is {token_id!r}, which names no token of tokenizer.json"
            )
        return str(token)

    @cached_property
    def _media_tokens(self) -> frozenset[str]:
        media = (getattr(self._library, name, None) for name in ("image_token", *_OTHER_MEDIA))
        return frozenset([self._feature_token, *(token for token in media if token)])

    @cached_property
    def _tokenizer(self) -> ChatTokenizer:
        # Tokens such as <think> need not be special to be the template's own; white space stays text.
        written = literals(template_of(self._library, self.folder))
        return ChatTokenizer(self._library.tokenizer, self._media_tokens, written)

    @cached_property
    def _chat(self) -> ChatTemplate:
        template = template_of(self._library, self.folder)
        variables = self._library.tokenizer.special_tokens_map
        return ChatTemplate(template, variables, self._tokenizer.control, self._library.image_token)

    def _check_ids(self) -> None:
        if not self.stop_ids:
            raise ModelError(f"{self.folder}: neither generation_config.json nor the tokenizer names an eos_token")
        if self.max_len > _NO_LIMIT:
            raise ModelError(
                f"{self.folder / 'config.json'}: max_position_embeddings is missing; say how long rows may be"
            )

    def _placeholder(self, text: str) -> Placeholder:
        return Placeholder(text.count(self._feature_token), text)

    def _features(self, index: int, placeholder: Placeholder) -> Iterator[Piece]:
        """What is written for picture `index`, its features in their places."""
        token = self._feature_token
        for piece in re.split(f"((?:{re.escape(token)})+)", placeholder.text):
            if piece.startswith(token):
                yield Shown(index, len(piece) // len(token), token)
            else:
                yield from self._tokenizer.split(piece)


@lru_cache(maxsize=4)  # each block of rows brings its copy
def _unpickled(folder: Path, options: str) -> LibraryProcessor:
    return LibraryProcessor(folder, json.loads(options), torchless=True)


def _without_own_lines(message: Message) -> Message:
    before = (None, *message.parts)
    parts = (part for last, part in zip(before, message.parts, strict=False) if not _is_own_line(last, part))
    return Message(message.role, tuple(parts))


def _is_own_line(last: Part | None, part: Part) -> bool:
    return isinstance(last, ImageTag) and part == Text("\n")
