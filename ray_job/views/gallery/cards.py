"""Cards: one output row beside the input row it came from.

Pictures are read as the model sees them (`inputs.pictures`), within the same limits, and made small at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

from PIL import Image

from ray_job.errors import RowError, Stage
from ray_job.inputs.pictures.decode import decode
from ray_job.inputs.pictures.rules import PictureRules
from ray_job.inputs.source import Source
from ray_job.prompts.conversation import Conversations
from ray_job.prompts.parts import ImageTag, Message, Special, Text
from ray_job.rows import PARSED, QUESTION_INDEX, READ_ERROR, ROW_ID, Status
from ray_job.spec import JobSpec
from ray_job.stages.fetch import picture_bytes, picture_values
from ray_job.stages.frames import FrameOf, RowFrames
from ray_job.stages.pages import RowPages

_QUALITY = 80
_MAX_PICTURES = 8


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A picture made small, as WebP; the size is the whole picture's, in pixels."""

    data: bytes
    width: int
    height: int

    @classmethod
    def of(cls, image: Image.Image, side: int) -> Thumbnail:
        """A picture within a square; a smaller one stays as it is."""
        width, height = image.size
        image.thumbnail((side, side))
        stream = BytesIO()
        image.save(stream, "WEBP", quality=_QUALITY)
        return cls(stream.getvalue(), width, height)


@dataclass(frozen=True, slots=True)
class Card:
    """One output row: what was asked and what was answered."""

    row_id: Any
    question_index: int | None  # where rows have several
    question: str | None  # with `[picture k]` where the prompt places one; None: the input does not tell
    pictures: tuple[Thumbnail | str, ...]  # a text: why none could be read there
    num_more_pictures: int  # the row has beyond these
    answer: str | None
    error: Mapping[str, Any] | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    latency_ms: float | None
    attempts: int
    parsed: Any = None  # the answer's value, where it is JSON

    @property
    def is_answered(self) -> bool:
        return self.error is None


class CardMaker:
    """Makes cards of output rows.

    Args:
        spec: the job, its prompt settled.
        source: its input.
        side: of a thumbnail, pixels.
    """

    def __init__(self, spec: JobSpec, source: Source, side: int = 224) -> None:
        self._spec = spec
        self.source = source
        self._side = side
        self._picture_rules = PictureRules.of(spec.input)
        self.password_column = spec.documents.password_column
        self._conversations = Conversations(source.prompt, ())
        self._pages = RowPages(spec, source, partial(_within, side))
        self._frames = RowFrames(spec, source)

    def card(self, record: Mapping[str, Any], row: Mapping[str, Any]) -> Card:
        """An output row, and the values of its input row (`prepare.row_values`)."""
        index = record.get(QUESTION_INDEX)
        pictures, num_more = self._pictures(row)
        return make_card(record, self._question(row, index or 0), pictures, num_more)

    def _question(self, row: Mapping[str, Any], index: int) -> str | None:
        try:
            conversations = self._conversations.of_row(row, 0)
            return _text(conversations[index]) if index < len(conversations) else None
        except BaseException as error:  # of this row, or it goes on from there
            RowError.of(error, Stage.PREPARE, row.get(ROW_ID))
            return None

    def _pictures(self, row: Mapping[str, Any]) -> tuple[tuple[Thumbnail | str, ...], int]:
        if row.get(READ_ERROR) is not None:
            return (), 0
        try:
            values = picture_values(row, self.source)
            read = partial(picture_bytes, spec=self._spec, source=self.source)
            limit = self._spec.limits.max_images
            values, counts = self._pages.expanded(values, row, read, limit)
            values, _ = self._frames.expanded(values, counts, read, limit)
        except BaseException as error:  # of this row, or it goes on from there
            return (RowError.of(error, Stage.PREPARE, row.get(ROW_ID)).message,), 0
        shown = tuple(self._thumbnail(value, row) for value in values[:_MAX_PICTURES])
        return shown, len(values) - len(shown)

    def _thumbnail(self, value: Any, row: Mapping[str, Any]) -> Thumbnail | str:
        try:
            if isinstance(value, FrameOf):
                return Thumbnail.of(self._frames.picture(value)[1], self._side)
            data = picture_bytes(value, self._spec, self.source)
            if self._pages.holds(data, value):
                return Thumbnail.of(self._pages.picture(data, value, row), self._side)
            return Thumbnail.of(decode(data, self._spec.limits, self._picture_rules), self._side)
        except BaseException as error:
            return RowError.of(error, Stage.PREPARE, row.get(ROW_ID)).message


def make_card(
    record: Mapping[str, Any],
    question: str | None,
    pictures: tuple[Thumbnail | str, ...] = (),
    num_more_pictures: int = 0,
) -> Card:
    """Makes the card of an output row."""
    usage = record["usage"] or {}
    return Card(
        row_id=record[ROW_ID],
        question_index=record.get(QUESTION_INDEX),
        question=question,
        pictures=pictures,
        num_more_pictures=num_more_pictures,
        answer=record["generated_text"],
        error=record["error"] if record["status"] != str(Status.OK) else None,
        finish_reason=record["finish_reason"],
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
        latency_ms=record["latency_ms"],
        attempts=record["attempts"],
        parsed=record.get(PARSED),
    )


def _within(side: int, width: float, height: float) -> tuple[int, int]:
    """The size of a page's thumbnail."""
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _text(messages: list[Message]) -> str:
    """A conversation to read: what the user said, or each turn under its role where there are several."""
    turns = [message for message in messages if message.role != "system"]
    texts = [(message.role, "".join(_part_text(part) for part in message.parts).strip()) for message in turns]
    if len(texts) == 1:
        return texts[0][1]
    return "\n".join(f"{role}: {text}" for role, text in texts)


def _part_text(part: Text | Special | ImageTag) -> str:
    if isinstance(part, ImageTag):
        return f"[picture {part.index}]"
    return part.text if isinstance(part, Text) else part.token
