"""From a row's columns to chat messages: one conversation for each question asked about the row.

Text from columns is data: unless the spec says otherwise, nothing in it becomes a picture tag or a chat token, apart
from `<image>` where it can only mean the row's pictures. The template, the system prompt and the spec's own questions
are written by the user, so picture tags in them count.
"""

from __future__ import annotations

import difflib
import itertools
import re
import string
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from ray_job.errors import ErrorCode, RowError, SpecError
from ray_job.prompts.column_text import text_of
from ray_job.prompts.json_text import has_half_pair
from ray_job.prompts.messages import IMAGE_TAG, read_turns
from ray_job.prompts.parts import ImageTag, Message, Part, Text, parse_markup, parse_tags
from ray_job.rows import travelling_name
from ray_job.spec import MAX_QUESTIONS, PromptSpec

QUESTION = "question"
_Question: TypeAlias = Callable[[Iterator[int], str | None], list[Part]]  # numbers and tag of pictures → its parts


def template_fields(template: str) -> list[str]:
    """Columns a template names, in order of first use.

    Raises:
        ValueError: a brace is unbalanced, or a field is more than a column's name.
    """
    fields: dict[str, None] = {}
    for _, name, format_spec, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if not name or format_spec or conversion or re.search(r"[.\[\]]", name):
            raise ValueError(
                f"field {name!r} is not a plain column name; write {{column}}, and {{{{ or }}}} for a brace"
            )
        fields[name] = None
    return list(fields)


def settle(prompt: PromptSpec, columns: Sequence[str], chat_columns: Sequence[str] = ()) -> PromptSpec:
    """The prompt with its defaults chosen by the columns the data has.

    Args:
        prompt: as the spec has it.
        columns: of the data.
        chat_columns: those that hold conversations, the likeliest first.

    Raises:
        SpecError: nothing says what to ask, or a named column is not there; every problem at once.
    """
    if prompt.messages_column is None and prompt.template is None:
        if chat_columns and prompt.questions is None and prompt.questions_column is None:
            prompt = prompt.model_copy(update={"messages_column": chat_columns[0]})
        else:
            prompt = prompt.model_copy(update={"template": _default_template(prompt, columns)})
    problems = []
    named = {"messages_column": prompt.messages_column, "questions_column": prompt.questions_column}
    for key, column in named.items():
        if column is not None and column not in columns:
            problems.append(f"prompt.{key}: no column {column!r}; {nearest(column, columns)}")
    try:
        fields = template_fields(prompt.template or "")
    except ValueError as error:
        raise SpecError([*problems, f"prompt.template: {error}"]) from None
    has_questions = prompt.questions is not None or prompt.questions_column is not None
    for column in fields:
        if column not in columns and not (column == QUESTION and has_questions):
            problems.append(f"prompt.template: no column {column!r}; {nearest(column, columns)}")
    if has_questions and QUESTION not in fields:
        problems.append("prompt.template: has no {question} field, and there is a list of questions to fill it with")
    if problems:
        raise SpecError(problems)
    return prompt


def nearest(name: str, columns: Sequence[str]) -> str:
    """A hint to the column that an unknown name may have meant, and all there are."""
    near = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}the data has: {', '.join(columns)}"


def _default_template(prompt: PromptSpec, columns: Sequence[str]) -> str:
    if prompt.questions is not None or prompt.questions_column is not None:
        return "{question}"
    for column in ("prompt", QUESTION):
        if column in columns:
            return "{" + column + "}"
    raise SpecError(
        [
            "prompt.template: missing, and the data has no column `prompt`, `question` or `messages`; say what to ask, "
            f"e.g. template: 'What is in this picture?'. The data has: {', '.join(columns)}"
        ]
    )


class Conversations:
    """Builds the messages of a row.

    Args:
        prompt: its `template` or `messages_column` settled (`settle`).
        specials: the model's chat tokens, for `column_markup: special`.
    """

    def __init__(self, prompt: PromptSpec, specials: Collection[str]) -> None:
        self._prompt = prompt
        self._specials = specials

    def of_row(self, row: Mapping[str, Any], num_pictures: int, counts: Sequence[int] = ()) -> list[list[Message]]:
        """One conversation for each question, with its pictures placed.

        Args:
            row: its values.
            num_pictures: it has.
            counts: how many pictures each part of its messages became: one, or a document's pages; by default one.

        Raises:
            RowError: a column the prompt needs is null, the messages do not parse, or there are too many questions.
        """
        if self._prompt.messages_column is not None:
            messages = self._from_messages(_required(row, self._prompt.messages_column), num_pictures, iter(counts))
            return [
                _place_pictures([*self._system(itertools.count(1), self._prompt.image_tag), *messages], num_pictures)
            ]
        questions = self._questions(row)
        return [_place_pictures(self._asked_about(row, question, num_pictures), num_pictures) for question in questions]

    def _questions(self, row: Mapping[str, Any]) -> list[_Question | None]:
        """What makes the parts of each question of a row; None for a row whose template is all."""
        if self._prompt.questions is not None:
            return [partial(_parsed, question, parse_tags) for question in self._prompt.questions]
        column = self._prompt.questions_column
        if column is None:
            return [None]
        questions = _required(row, column)
        if not isinstance(questions, list) or not questions or None in questions:
            raise RowError(ErrorCode.PROMPT_MISSING, f"column {column!r} holds no list of questions")
        if len(questions) > MAX_QUESTIONS:
            raise RowError(
                ErrorCode.TOO_MANY_QUESTIONS,
                f"{len(questions)} questions; a row may have {MAX_QUESTIONS}. Split it into several rows",
            )
        return [partial(_parsed, _text(column, question), self._parse_column) for question in questions]

    def _asked_about(self, row: Mapping[str, Any], question: _Question | None, num_pictures: int) -> list[Message]:
        """One question; `<image>` shows pictures if nothing else does and it stands there as often as there are any."""
        tag = self._prompt.image_tag
        messages = self._asked(row, question, tag)
        parts = [part for message in messages for part in message.parts]
        may_be_tagged = tag is None and num_pictures and any(isinstance(p, Text) and IMAGE_TAG in p.text for p in parts)
        if not may_be_tagged or _num_tags(messages):
            return messages
        tagged = self._asked(row, question, IMAGE_TAG)
        return tagged if _num_tags(tagged) == num_pictures else messages

    def _asked(self, row: Mapping[str, Any], question: _Question | None, tag: str | None) -> list[Message]:
        """The system prompt, and the template with its fields filled."""
        numbers = itertools.count(1)
        messages = self._system(numbers, tag)
        parts: list[Part] = []
        for literal, name, _, _ in string.Formatter().parse(self._prompt.template or ""):
            parts += _parsed(literal, parse_tags, numbers, tag)
            if name == QUESTION and question is not None:
                parts += question(numbers, tag)
            elif name is not None:
                parts += _parsed(_text(name, _required(row, name)), self._parse_column, numbers, tag)
        return [*messages, Message("user", tuple(parts))]

    def _system(self, numbers: Iterator[int], tag: str | None) -> list[Message]:
        if self._prompt.system is None:
            return []
        return [Message("system", tuple(_parsed(self._prompt.system, parse_tags, numbers, tag)))]

    def _parse_column(self, text: str) -> list[Part]:
        if has_half_pair(text):
            raise _malformed("a text holds half of a surrogate pair, which is no character")
        if self._prompt.column_markup == "tags":
            return parse_tags(text)
        if self._prompt.column_markup == "special":
            return parse_markup(text, self._specials)
        return [Text(text)]

    def _from_messages(self, value: Any, num_pictures: int, counts: Iterator[int]) -> list[Message]:
        messages, numbers = [], itertools.count(1)
        for turn in read_turns(value, self._prompt.image_tag, num_pictures):
            parts: list[Part] = []
            for piece in turn.pieces:
                if isinstance(piece, str):
                    parts += self._parse_column(piece)
                    continue
                for _ in range(next(counts, 1)):
                    parts += [ImageTag(next(numbers)), *([Text("\n")] if piece.has_own_line else [])]
            messages.append(Message(turn.role, tuple(part for part in parts if part != Text(""))))
        return messages


def _parsed(text: str, parse: Callable[[str], list[Part]], numbers: Iterator[int], tag: str | None) -> list[Part]:
    """The parts of a text in which the tag shows the next picture."""
    first, *others = text.split(tag) if tag else [text]
    parts = parse(first)
    for other in others:
        parts += [ImageTag(next(numbers)), *parse(other)]
    return [part for part in parts if part != Text("")] if others else parts


def _num_tags(messages: Sequence[Message]) -> int:
    return sum(isinstance(part, ImageTag) for message in messages for part in message.parts)


def _place_pictures(messages: list[Message], num_pictures: int) -> list[Message]:
    """Where no tag places them, pictures stand first in the first user message, each on a line of its own."""
    if _num_tags(messages) or num_pictures == 0:
        return messages
    tags: list[Part] = []
    for index in range(1, num_pictures + 1):
        tags += [ImageTag(index), Text("\n")]
    first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
    if first is None:
        raise _malformed("no user message to place the pictures in")
    placed = Message("user", (*tags, *messages[first].parts))
    return [*messages[:first], placed, *messages[first + 1 :]]


def _required(row: Mapping[str, Any], column: str) -> Any:
    value = row[own] if (own := travelling_name(column)) in row else row.get(column)
    if value is None:
        raise RowError(ErrorCode.PROMPT_MISSING, f"column {column!r} is null; the prompt needs it")
    return value


def _text(column: str, value: Any) -> str:
    try:
        return text_of(value)
    except RowError as error:
        raise _malformed(f"column {column!r} holds {error.message}") from None


def _malformed(message: str) -> RowError:
    return RowError(ErrorCode.ROW_MALFORMED, message)
