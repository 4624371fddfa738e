"""Rows whose text holds `<image>` as plain characters although they have pictures: often their author meant a picture.

It shows none where another tag places the pictures, or where it does not stand there as often as there are pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from ray_job.errors import RowError
from ray_job.inputs.source import Source, iter_tables
from ray_job.prompts.conversation import Conversations, template_fields
from ray_job.prompts.messages import IMAGE_TAG
from ray_job.prompts.parts import Message, Text
from ray_job.rows import READ_ERROR, ROW_ID
from ray_job.spec import JobSpec
from ray_job.stages.fetch import picture_values
from ray_job.stages.prepare import row_values

_FIRST_ROWS = 256


class LiteralTags:
    """Counts such rows.

    Args:
        spec: with a settled prompt. Where it sets `prompt.image_tag`, what that says is meant.
    """

    def __init__(self, spec: JobSpec) -> None:
        prompt = spec.prompt
        self._conversations = Conversations(prompt, ())
        self._is_open = prompt.image_tag is None
        fixed = (prompt.template, prompt.system, *(prompt.questions or ()))
        self._is_everywhere = any(IMAGE_TAG in (text or "") for text in fixed)
        named = (prompt.messages_column, prompt.questions_column, *template_fields(prompt.template or ""))
        self._columns = [name for name in named if name is not None]
        self.num_rows = 0
        self.example = ""

    def see(self, row: Mapping[str, Any], num_pictures: int) -> None:
        """Looks at a row, given how many pictures it shows."""
        if not self._is_open or not num_pictures or not (self._is_everywhere or self._may_hold_tags(row)):
            return
        try:
            conversations = self._conversations.of_row(row, num_pictures)
        except RowError:  # which the row is told itself
            return
        num_tags = max(map(_num_literal, conversations), default=0)
        if num_tags:
            self.num_rows += 1
            self.example = self.example or f"{row[ROW_ID]!s:.100}: {num_tags} of them, {num_pictures} shown"

    def hint(self, of_rows: str) -> str | None:
        """How many of which rows, and what to set; None for none."""
        if not self.num_rows:
            return None
        return (
            f"{self.num_rows} of {of_rows} show their pictures elsewhere than at {IMAGE_TAG}, which stays text "
            f"(e.g. {self.example}): set prompt.image_tag: '{IMAGE_TAG}' for a picture at each, where rows with "
            "another number of pictures fail, or '' if text is what you want"
        )

    def _may_hold_tags(self, row: Mapping[str, Any]) -> bool:
        values = (row.get(name) for name in self._columns)
        return any(IMAGE_TAG in (value if isinstance(value, str) else repr(value)) for value in values)


def first_rows_hint(spec: JobSpec, source: Source) -> str | None:
    """What the first rows of an input give, as they are read: for who does not want to read all of it."""
    tags = LiteralTags(spec)
    num_rows = 0
    for table in islice(iter_tables(source, _FIRST_ROWS), 1):
        num_rows = table.num_rows
        for row in row_values(table, source):
            if row.get(READ_ERROR) is None:
                tags.see(row, _num_pictures(row, source))
    return tags.hint(f"the first {num_rows} rows")


def _num_pictures(row: Mapping[str, Any], source: Source) -> int:
    try:
        return len(picture_values(row, source))
    except RowError:
        return 0


def _num_literal(messages: Iterable[Message]) -> int:
    asked = (message for message in messages if message.role != "assistant")
    return sum(part.text.count(IMAGE_TAG) for message in asked for part in message.parts if isinstance(part, Text))
