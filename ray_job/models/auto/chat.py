"""A model's own chat template: messages to text and control tokens, with a `Text` never becoming one of these.

The template is rendered by the library, in its sandbox. What texts spell like a control token goes through it between
two marks, which the template takes for ordinary characters: it may trim, split and look into texts as it does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from ray_job.errors import ErrorCode, ModelError, RowError, first_line
from ray_job.models.auto.tokenizer import one_of
from ray_job.prompts.parts import ImageTag, Message, Part, Special, Text

# Noncharacters, which text that is interchanged has none of: around what looks like a control token, and after the
# beginning of an answer.
_START, _END, _CUT = "\ufdd0", "\ufdd1", "\ufdd2"
_PROBE = "xyzzy"
_SHOWN_CHARS = 200
# The day it is to templates that write today's: a prompt must not depend on when a job runs.
_TODAY = date(2024, 7, 26)

# PaliGemma is published without a template; its processor's own layout is this one, and it knows no turns.
_PALIGEMMA = (
    "{% if messages | length > 1 or messages[0]['role'] != 'user' %}{{ raise_exception('PaliGemma answers one message "
    "of a user: it knows no system prompt and no earlier turns') }}{% endif %}"
    "{% set content = messages[0]['content'] %}"
    "{% for each in content | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}{{ bos_token }}"
    "{% for each in content | selectattr('type', 'equalto', 'text') %}{{ each['text'] }}{% endfor %}{{ '\n' }}"
)
_BUILT_IN = {"PaliGemmaProcessor": _PALIGEMMA}


def template_of(library: Any, folder: Path) -> str:
    """The chat template of a processor of the library's, or of its tokenizer. Raises ModelError if there is none."""
    for found in (library.chat_template, library.tokenizer.chat_template, _BUILT_IN.get(type(library).__name__)):
        template = found.get("default") if isinstance(found, Mapping) else found
        if template:
            return str(template)
    raise ModelError(
        f"{folder} has no chat template: neither chat_template.jinja nor one in tokenizer_config.json. Put the file "
        "chat_template.jinja of the model that it was made from into the folder, or one that writes your prompts"
    )


def literals(template: str) -> str:
    """What a template writes or looks for by itself. Raises ModelError for one that is no Jinja."""
    from jinja2 import nodes

    tree = _compiled(template).environment.parse(template)
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    texts += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return "\0".join(texts)


def _compiled(template: str) -> Any:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        return _compile_jinja_template(template)
    except Exception as error:
        raise ModelError(f"the chat template is no Jinja template: {_reason(error)}") from error


class ChatTemplate:
    """Renders conversations.

    Args:
        template: Jinja, the model's.
        variables: those that it knows beside messages, such as `bos_token`.
        control: tokens that a text must not become.
        image_token: what shows a picture.

    Raises:
        ModelError: the template is no Jinja, or shows the simplest conversation neither as lists of parts nor as texts.
    """

    def __init__(self, template: str, variables: Mapping[str, Any], control: Collection[str], image_token: str) -> None:
        self._template = _compiled(template)
        self._variables = {"tools": None, "documents": None, **variables, "strftime_now": _TODAY.strftime}
        self._control = control
        self._image_token = image_token
        self._beginnings = {token[:end] for token in control for end in range(1, len(token))}
        self._endings = {token[start:] for token in control for start in range(1, len(token))}
        self._wants_strings = False
        failure = self._failure()
        if failure is not None:  # it may know texts alone
            self._wants_strings = True
            if self._failure() is not None:
                raise ModelError(f"the chat template {failure}")

    def _failure(self) -> str | None:
        """What goes wrong with the simplest conversation; None if nothing does."""
        try:
            rendered = self._rendered([Message("user", (Text(_PROBE),))])
        except Exception as error:
            return f"fails on a user's message: {_reason(error)}"
        if _PROBE not in rendered or "'type'" in rendered:  # the latter where it shows a list as Python does
            return f"does not show a user's text {_PROBE!r}: it gives {rendered[:_SHOWN_CHARS]!r}"
        return None

    @cached_property
    def takes_system(self) -> bool:
        """Whether a system prompt is shown to the model."""
        try:
            return _PROBE in self._rendered([Message("system", (Text(_PROBE),)), Message("user", (Text("?"),))])
        except Exception:  # most templates say so by raising, in words of their own
            return False

    def parts(self, messages: Sequence[Message]) -> list[Text | Special]:
        """What the model reads. An assistant's message at the end is begun, for the model to go on with.

        Raises:
            RowError: there are no messages, or the template refuses them.
        """
        if not messages:
            raise RowError(ErrorCode.PROMPT_MISSING, "the message list is empty; give at least one message")
        if not self.takes_system and any(message.role == "system" for message in messages):
            raise RowError(
                ErrorCode.ROW_MALFORMED,
                "the model's chat template has no place for a system prompt; put it into the user's message",
            )
        try:
            rendered = self._rendered(messages)
        except RowError:
            raise
        except Exception as error:  # whatever a template makes Jinja and Python raise
            raise RowError(
                ErrorCode.ROW_MALFORMED, f"the model's chat template refuses the messages: {_reason(error)}"
            ) from None
        return list(self._parts(rendered))

    def _rendered(self, messages: Sequence[Message]) -> str:
        *earlier, last = messages
        is_begun = last.role == "assistant"
        if is_begun:
            earlier.append(Message(last.role, (*last.parts, Special(_CUT))))
        conversation = [
            {"role": message.role, "content": self._content(message.parts)}
            for message in (earlier if is_begun else messages)
        ]
        rendered = str(
            self._template.render(messages=conversation, add_generation_prompt=not is_begun, **self._variables)
        )
        if is_begun and _CUT not in rendered:
            raise ValueError("it does not show the assistant's last message")
        return rendered.partition(_CUT)[0] if is_begun else rendered

    def _content(self, parts: Sequence[Part]) -> list[dict[str, str]] | str:
        """A message's content as the library's templates take it; neighbouring texts are one."""
        content: list[dict[str, str]] = []
        for text in self._runs(parts):
            if text is not None and content and content[-1]["type"] == "text":
                content[-1]["text"] += text
            else:
                content.append({"type": "image"} if text is None else {"type": "text", "text": text})
        if self._wants_strings:
            return "".join(each.get("text", self._image_token) for each in content)
        return content or [{"type": "text", "text": ""}]

    def _runs(self, parts: Sequence[Part]) -> Iterator[str | None]:
        """Texts, marked, and None for a picture."""
        text = ""
        for part in parts:
            if isinstance(part, Text):
                text += part.text
                continue
            if text:
                yield self._marked(text)
            text = ""
            yield None if isinstance(part, ImageTag) else part.token
        if text:
            yield self._marked(text)

    def _marked(self, text: str) -> str:
        """The text with marks around control tokens, and within what may be a part of one with what is beside it."""
        if any(mark in text for mark in (_START, _END, _CUT)):
            raise RowError(ErrorCode.ROW_MALFORMED, "a text holds a noncharacter, such as U+FDD0; take it out")
        shown = text.strip()
        first, last = text.find(shown), text.find(shown) + len(shown)
        longest = max(map(len, self._beginnings), default=0)
        breaks = {at + 1 for at in range(max(first, last - longest), last) if text[at:last] in self._beginnings}
        breaks |= {at - 1 for at in range(first + 1, min(last, first + longest) + 1) if text[first:at] in self._endings}
        marks: dict[int, str] = dict.fromkeys(breaks, _END)
        for match in self._control_pattern.finditer(text):
            marks[match.start()] = marks.get(match.start(), "") + _START
            marks[match.end()] = _END
            marks = {at: mark for at, mark in marks.items() if not match.start() < at < match.end()}
        pieces, end = [], 0
        for at, mark in sorted(marks.items()):
            pieces += [text[end:at], mark]
            end = at
        return "".join([*pieces, text[end:]])

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        return re.compile(one_of(self._control))

    @cached_property
    def _rendered_pattern(self) -> re.Pattern[str]:
        tokens = self._control_pattern.pattern
        return re.compile(f"{_START}(?P<text>{tokens}){_END}|(?P<control>{tokens})|[{_START}{_END}]")

    def _parts(self, rendered: str) -> Iterator[Text | Special]:
        """The rendered text with the control tokens that the template or a trusted prompt wrote."""
        text, end = "", 0
        for match in self._rendered_pattern.finditer(rendered):
            text += rendered[end : match.start()] + (match["text"] or "")
            end = match.end()
            if match["control"]:
                if text:
                    yield Text(text)
                yield Special(match["control"])
                text = ""
        if text := text + rendered[end:]:
            yield Text(text)


def _reason(error: Exception) -> str:
    name = "" if type(error).__name__ == "TemplateError" else f"{type(error).__name__}: "
    return f"{name}{first_line(error)}"
