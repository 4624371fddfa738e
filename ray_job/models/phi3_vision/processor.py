"""Prompts and pictures to what the model reads, and answers back to text. Imports no torch, no transformers.

Ids equal the official processor of Phi-3-vision-128k-instruct, measured by
tests/models/phi3_vision/test_processor.py, but for one difference on purpose: the characters of a `Text` never
become a special token, whatever they spell.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ray_job.errors import ErrorCode, ModelError, RowError
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig
from ray_job.models.phi3_vision.image_processing import hd_size, hd_transform, max_image_tokens, num_image_tokens
from ray_job.models.phi3_vision.preprocessor_config import CLIP_MEAN, CLIP_STD, PreprocessorConfig
from ray_job.models.phi3_vision.prompt_tokenizer import PromptTokenizer
from ray_job.models.processor import Placeholder, PreparedPicture, check_tags
from ray_job.prompts.parts import ImageTag, Message, Part, Special, Text, parse_markup, parse_specials

PIXELS = "pixels"  # the name of a prepared picture's only array
BOS, PAD, END = "<s>", "<|endoftext|>", "<|end|>"


@dataclass(frozen=True, eq=False)
class Encoded:
    """One sample: token ids with -k at picture k's places, and each picture's HD pixels, uint8 (H, W, 3)."""

    input_ids: list[int]
    pictures: list[npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class ProcessorOptions:
    """What of a processor is not in tokenizer.json. Official values by default."""

    num_crops: int = 16
    crop_size: int = 336
    tokens_per_crop_side: int = 12
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD
    max_len: int = 4096


class Phi3VisionProcessor:
    """Pickles as its folder and options, a few hundred bytes; the tokenizer is read again where it is used."""

    def __init__(self, folder: str | os.PathLike[str], options: ProcessorOptions) -> None:
        self.folder = Path(folder)
        self.options = options

    def __reduce__(self) -> tuple[type[Phi3VisionProcessor], tuple[Path, ProcessorOptions]]:
        return type(self), (self.folder, self.options)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], num_crops: int | None = None) -> Phi3VisionProcessor:
        """Reads tokenizer.json, preprocessor_config.json and, for the crops' geometry, config.json if present.

        `num_crops` overrides the folder's. Raises ModelError for a file that is absent, broken or not
        Phi-3-Vision's.
        """
        path = Path(folder)
        preprocessor = PreprocessorConfig.from_pretrained(path)
        has_config = (path / "config.json").exists()
        config = Phi3VisionConfig.from_pretrained(path) if has_config else Phi3VisionConfig()
        crops = preprocessor.num_crops if num_crops is None else num_crops
        if crops < 1:
            raise ModelError(f"num_crops is {crops!r}; allowed: a whole number above 0")
        options = ProcessorOptions(
            num_crops=crops,
            crop_size=config.vision.image_size,
            tokens_per_crop_side=config.tokens_per_crop_side,
            image_mean=preprocessor.image_mean,
            image_std=preprocessor.image_std,
            max_len=config.max_position_embeddings,
        )
        processor = cls(path, options)
        processor._tokenizer.require(BOS, PAD, END)
        return processor

    @cached_property
    def _tokenizer(self) -> PromptTokenizer:
        return PromptTokenizer(self.folder / "tokenizer.json")

    @property
    def num_crops(self) -> int:
        """At most so many crops are cut from a picture, the global view not counted."""
        return self.options.num_crops

    @property
    def crop_size(self) -> int:
        """Pixels along one side of a crop."""
        return self.options.crop_size

    @property
    def tokens_per_crop_side(self) -> int:
        """Tokens along one side of a crop."""
        return self.options.tokens_per_crop_side

    @property
    def max_image_tokens(self) -> int:
        """Tokens of the picture that takes most."""
        return max_image_tokens(self.num_crops, self.tokens_per_crop_side)

    @property
    def max_len(self) -> int:
        """Tokens of the longest row that the model can run, prompt and answer."""
        return self.options.max_len

    @property
    def takes_system(self) -> bool:
        """Its chat template takes any role."""
        return True

    @property
    def counts_by_size(self) -> bool:
        """A picture's tokens follow from its size."""
        return True

    @property
    def image_mean(self) -> tuple[float, float, float]:
        """Subtracted from pixels in 0..1, by channel."""
        return self.options.image_mean

    @property
    def image_std(self) -> tuple[float, float, float]:
        """Divides what is left, by channel."""
        return self.options.image_std

    @property
    def bos_id(self) -> int:
        """Id of `<s>`, which starts a prompt and follows each picture."""
        return self._tokenizer.special_id(BOS)

    @property
    def pad_id(self) -> int:
        """Id of `<|endoftext|>`. A prompt may hold it: never derive a mask from it."""
        return self._tokenizer.special_id(PAD)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: `<|end|>` and `<|endoftext|>`, found by name, not by number."""
        return self._tokenizer.special_id(END), self._tokenizer.special_id(PAD)

    @property
    def special_tokens(self) -> frozenset[str]:
        """The tokens a `Special` may name."""
        return self._tokenizer.special_tokens

    def chat_parts(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[Part]:
        """The official chat template. A prompt that ends with the assistant's turn gets no second one.

        Raises RowError PROMPT_MISSING without messages.
        """
        if not messages:
            raise RowError(ErrorCode.PROMPT_MISSING, "the message list is empty; give at least one message")
        parts: list[Part] = []
        for message in messages:
            parts += [Special(f"<|{message.role}|>"), Text("\n"), *message.parts, Special(END), Text("\n")]
        if add_generation_prompt and messages[-1].role != "assistant":
            parts += [Special("<|assistant|>"), Text("\n")]
        return parts

    def encode(self, parts: Sequence[Part], image_tokens: Sequence[int]) -> list[int]:
        """Token ids, with -k in the `image_tokens[k - 1]` places of picture k.

        Every piece between pictures is tokenized on its own and starts with `<s>`. Tags may stand in any
        order. Raises RowError PROMPT_TAGS unless they are 1..n, each once, for n pictures; ModelError for
        a `Special` the tokenizer does not have.
        """
        check_tags([part.index for part in parts if isinstance(part, ImageTag)], len(image_tokens))
        ids, piece = [self.bos_id], list[Text | Special]()
        for part in parts:
            if not isinstance(part, ImageTag):
                piece.append(part)
                continue
            ids += self._tokenizer.encode(piece)
            ids += [-part.index] * image_tokens[part.index - 1]
            ids.append(self.bos_id)
            piece = []
        return ids + self._tokenizer.encode(piece)

    def encode_chat(self, messages: Sequence[Message], placeholders: Sequence[Placeholder]) -> list[int]:
        """`encode` of `chat_parts`: the ids of a prompt that asks for an answer. Raises as both do."""
        return self.encode(self.chat_parts(messages), [each.num_tokens for each in placeholders])

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of generated ids. Raises ValueError for a picture placeholder: cut the prompt off first."""
        return self._tokenizer.decode(ids, skip_special_tokens)

    def tokenizer_json(self) -> str:
        """The content of the folder's tokenizer.json."""
        return (self.folder / "tokenizer.json").read_text(encoding="utf-8")

    def picture(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """HD pixels, uint8 (H, W, 3). Raises RowError IMAGE_TOO_NARROW."""
        return hd_transform(image, self.num_crops, self.crop_size)

    def prepare(self, image: Image.Image) -> PreparedPicture:
        """HD pixels, uint8 (H, W, 3), as array `PIXELS`. Raises RowError IMAGE_TOO_NARROW."""
        return PreparedPicture({PIXELS: self.picture(image)}, self.placeholder(image.width, image.height))

    def placeholder(self, width: int, height: int) -> Placeholder:
        """What stands for a picture of that size: its tokens alone. Raises RowError IMAGE_TOO_NARROW."""
        return Placeholder(self.image_tokens(width, height))

    def image_tokens(self, width: int, height: int) -> int:
        """Tokens of a `width` × `height` picture, without decoding it. Raises RowError IMAGE_TOO_NARROW."""
        size = hd_size(width, height, self.num_crops, self.crop_size)
        return num_image_tokens(size.rows, size.cols, self.tokens_per_crop_side)

    def page_size(self, width: float, height: float) -> tuple[int, int]:
        """Pixels, width and height, to draw a page at that has sides of this ratio: more would be thrown away.

        Raises RowError IMAGE_TOO_NARROW.
        """
        scale = max(1.0, 1.0 / min(width, height))  # only the ratio counts
        size = hd_size(width * scale, height * scale, self.num_crops, self.crop_size)
        return size.resized_width, size.resized_height

    def process(self, text: str, images: Sequence[Image.Image] | None = None) -> Encoded:
        """One trusted prompt in the official format with its pictures.

        Without pictures (None) a `<|image_N|>` stays text, as officially; an empty list asks for no tag.
        Raises RowError as `encode` and `picture` do.
        """
        if images is None:
            return Encoded(self.encode(parse_specials(text, self.special_tokens), []), [])
        counts = [self.image_tokens(image.width, image.height) for image in images]
        input_ids = self.encode(parse_markup(text, self.special_tokens), counts)
        return Encoded(input_ids, [self.picture(image) for image in images])

    def process_batch(self, texts: Sequence[str], images: Sequence[Sequence[Image.Image] | None]) -> list[Encoded]:
        """Each sample as `process` gives it; no padding. Raises ValueError unless both are equally long."""
        return [self.process(text, pictures) for text, pictures in zip(texts, images, strict=True)]
