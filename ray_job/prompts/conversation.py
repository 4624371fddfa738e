"""From a row's columns to chat messages: one conversation for each question asked about the row.

Text from columns is data: unless the spec says otherwise, nothing in it becomes a picture tag or a chat token. The
template, the system prompt and the spec's own questions are written by the user, so picture tags in them count.
"""

from __future__ import annotations

import difflib
import itertools
import re
import string
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from ray_job.errors import ErrorCode, RowError, SpecError
from ray_job.prompts.json_text import has_half_pair, parse_json
from ray_job.prompts.parts import ImageTag, Message, Part, Text, parse_markup, parse_tags
from ray_job.spec import MAX_QUESTIONS, PromptSpec

QUESTION = "question"
DOCUMENT = "document"  # the key of a picture's value that is a whole document, whatever its number of pages
_FILES = ("file", "input_file")
_PICTURES = ("image_url", "image", *_FILES)
_ROLES = ("system", "user", "assistant")


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


def settle(prompt: PromptSpec, columns: Sequence[str]) -> PromptSpec:
    """The prompt with its defaults chosen by the columns the data has.

    Raises:
        SpecError: nothing says what to ask, or a named column is not there; every problem at once.
    """
    if prompt.messages_column is None and prompt.template is None:
        if "messages" in columns and prompt.questions is None and prompt.questions_column is None:
            prompt = prompt.model_copy(update={"messages_column": "messages"})
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
            messages = self._from_messages(_required(row, self._prompt.messages_column), iter(counts))
            return [_place_pictures(self._with_system(messages), num_pictures)]
        return [
            _place_pictures(self._with_system([Message("user", tuple(parts))]), num_pictures)
            for parts in self._questions(row)
        ]

    def _questions(self, row: Mapping[str, Any]) -> list[list[Part]]:
        if self._prompt.questions is not None:
            return [self._fill(row, parse_tags(question)) for question in self._prompt.questions]
        if self._prompt.questions_column is not None:
            questions = _required(row, self._prompt.questions_column)
            if not isinstance(questions, list) or not questions or None in questions:
                column = self._prompt.questions_column
                raise RowError(ErrorCode.PROMPT_MISSING, f"column {column!r} holds no list of questions")
            if len(questions) > MAX_QUESTIONS:
                raise RowError(
                    ErrorCode.TOO_MANY_QUESTIONS,
                    f"{len(questions)} questions; a row may have {MAX_QUESTIONS}. Split it into several rows",
                )
            return [self._fill(row, self._parse_column(str(question))) for question in questions]
        return [self._fill(row, None)]

    def _fill(self, row: Mapping[str, Any], question: list[Part] | None) -> list[Part]:
        """The template with its fields filled."""
        parts: list[Part] = []
        for literal, name, _, _ in string.Formatter().parse(self._prompt.template or ""):
            parts += parse_tags(literal)
            if name == QUESTION and question is not None:
                parts += question
            elif name is not None:
                parts += self._parse_column(str(_required(row, name)))
        return parts

    def _parse_column(self, text: str) -> list[Part]:
        if has_half_pair(text):
            raise _malformed("a text holds half of a surrogate pair, which is no character")
        if self._prompt.column_markup == "tags":
            return parse_tags(text)
        if self._prompt.column_markup == "special":
            return parse_markup(text, self._specials)
        return [Text(text)]

    def _with_system(self, messages: list[Message]) -> list[Message]:
        if self._prompt.system is None:
            return messages
        return [Message("system", tuple(parse_tags(self._prompt.system))), *messages]

    def _from_messages(self, value: Any, counts: Iterator[int]) -> list[Message]:
        value = _parsed(value)
        if not isinstance(value, list) or not value:
            raise _malformed(f"messages must be a list with at least one message, got {_kind(value)}")
        numbers = itertools.count(1)
        return [self._message(index, item, numbers, counts) for index, item in enumerate(value)]

    def _message(self, index: int, item: Any, numbers: Iterator[int], counts: Iterator[int]) -> Message:
        if not isinstance(item, dict) or item.get("role") not in _ROLES:
            got = item.get("role") if isinstance(item, dict) else item
            raise _malformed(f"message {index}: role must be one of {', '.join(_ROLES)}, got {got!r}")
        role: Literal["system", "user", "assistant"] = item["role"]
        content = item.get("content")
        if isinstance(content, str):
            return Message(role, tuple(self._parse_column(content)))
        if not isinstance(content, list):
            raise _malformed(
                f"message {index}: content must be a text or a list of parts, got {type(content).__name__}"
            )
        parts: list[Part] = []
        for part in content:
            parts += self._message_part(index, part, numbers, counts)
        return Message(role, tuple(parts))

    def _message_part(self, index: int, part: Any, numbers: Iterator[int], counts: Iterator[int]) -> list[Part]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            return self._parse_column(part["text"])
        if kind in _PICTURES:
            return [piece for _ in range(next(counts, 1)) for piece in (ImageTag(next(numbers)), Text("\n"))]
        raise _malformed(f"message {index}: a part must be a text or an image_url, got {kind!r}")


def image_parts(messages: Any) -> list[Any]:
    """The picture values of OpenAI messages (a list or JSON text), in order; of anything else none.

    Raises:
        RowError: the text is not JSON.
    """
    messages = _parsed(messages)
    items = messages if isinstance(messages, list) else []
    contents = [item.get("content") for item in items if isinstance(item, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    return [_image_value(part) for part in parts if part.get("type") in _PICTURES]


def _image_value(part: Mapping[str, Any]) -> Any:
    if part["type"] == "image":
        return part.get("image")
    if part["type"] in _FILES:
        return file_value(part)
    link = part.get("image_url")
    return link.get("url") if isinstance(link, dict) else link


def file_value(part: Mapping[str, Any]) -> dict[str, Any]:
    """A whole document as a picture's value: of a `file` or `input_file` part, with its data or an address.

    Raises:
        RowError: ROW_MALFORMED: it has neither.
    """
    file = part.get("file") if isinstance(part.get("file"), dict) else part
    assert isinstance(file, Mapping)
    data, url = file.get("file_data"), file.get("file_url")
    if isinstance(data, str) and data.strip():
        return {DOCUMENT: data if data[:5].lower() == "data:" else f"data:application/pdf;base64,{data}"}
    if isinstance(url, str) and url.strip():
        return {DOCUMENT: url}
    what = "file_id names a file of another service" if file.get("file_id") else "it has no file_data"
    raise _malformed(f"a file part: {what}; give file_data, as in data:application/pdf;base64,…")


def _parsed(messages: Any) -> Any:
    if not isinstance(messages, str):
        return messages
    try:
        return parse_json(messages)
    except RowError as error:
        raise _malformed(f"messages: {error.message}") from None


def _kind(value: Any) -> str:
    return "an empty one" if value == [] else type(value).__name__


def _place_pictures(messages: list[Message], num_pictures: int) -> list[Message]:
    """Where no tag places them, pictures stand first in the first user message, each on a line of its own."""
    has_tags = any(isinstance(part, ImageTag) for message in messages for part in message.parts)
    if has_tags or num_pictures == 0:
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
    value = row.get(column)
    if value is None:
        raise RowError(ErrorCode.PROMPT_MISSING, f"column {column!r} is null; the prompt needs it")
    return value


def _malformed(message: str) -> RowError:
    return RowError(ErrorCode.ROW_MALFORMED, message)
