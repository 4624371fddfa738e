"""What a job needs of a model's processor: pictures and messages to what the model reads, and its answers to text.

Preparing processes hold one of these and no model. Token ids have −k in the places of picture k, whatever the model
itself writes there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt
from PIL import Image

from ray_job.errors import ErrorCode, RowError
from ray_job.prompts.parts import Message


@dataclass(frozen=True, slots=True)
class Placeholder:
    """What stands for a picture in a prompt."""

    num_tokens: int  # whose places the picture's features take
    text: str = ""  # where a model writes more for a picture than those, such as the rows and columns of its tiles


@dataclass(frozen=True, slots=True)
class PreparedPicture:
    """A picture as it travels to the model: whole numbers where the model allows it, not yet normalised."""

    arrays: Mapping[str, npt.NDArray[Any]]  # by the names that the model knows
    placeholder: Placeholder


class Processor(Protocol):
    """Pickles small: it is sent to every preparing process, and reads its files again there."""

    @property
    def special_tokens(self) -> Collection[str]:
        """The tokens that a part of the prompt may name (`prompts.parts.Special`)."""
        ...

    @property
    def pad_id(self) -> int:
        """An id to fill places with that nobody reads. A prompt may hold it: never derive a mask from it."""
        ...

    @property
    def stop_ids(self) -> Collection[int]:
        """Ids that end an answer."""
        ...

    @property
    def max_len(self) -> int:
        """Tokens of the longest row that the model can run, prompt and answer."""
        ...

    @property
    def max_image_tokens(self) -> int:
        """Tokens of the picture that takes most."""
        ...

    @property
    def takes_system(self) -> bool:
        """Whether the model's template has a place for a system prompt."""
        ...

    @property
    def counts_by_size(self) -> bool:
        """Whether `placeholder` tells of a picture by its size."""
        ...

    def prepare(self, image: Image.Image) -> PreparedPicture:
        """A picture as the model reads it. Raises RowError for one that it cannot read."""
        ...

    def placeholder(self, width: int, height: int) -> Placeholder | None:
        """What stands for a picture of that size, in pixels; None where only preparing it tells. Raises RowError."""
        ...

    def page_size(self, width: float, height: float) -> tuple[int, int]:
        """Pixels, width and height, to draw a page at that has sides of this ratio: more would be thrown away."""
        ...

    def encode_chat(self, messages: Sequence[Message], placeholders: Sequence[Placeholder]) -> list[int]:
        """Token ids of a prompt that asks for an answer, by the model's own template.

        A `Text` of a message stays text, whatever it spells. Raises RowError where the picture tags are not 1 to n for
        n placeholders, each once, or the model's template refuses the messages.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens."""
        ...

    def tokenizer_json(self) -> str:
        """The tokenizer, as the content of a tokenizer.json: what follows answers through a form."""
        ...


def check_tags(indices: Sequence[int], num_images: int) -> None:
    """Raises RowError PROMPT_TAGS unless the tags' numbers are 1 to `num_images`, each once."""
    if sorted(indices) == list(range(1, num_images + 1)):
        return
    tags = ", ".join(f"<|image_{index}|>" for index in indices) or "no picture tag"
    wanted = f"<|image_1|> to <|image_{num_images}|>, each once" if num_images else "no picture tag"
    raise RowError(ErrorCode.PROMPT_TAGS, f"the prompt has {tags}; with {num_images} pictures it must have {wanted}")
