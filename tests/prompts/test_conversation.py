"""Prompts from columns: templates, questions, messages, and text that stays text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ray_job.errors import ErrorCode, RowError, SpecError
from ray_job.prompts.conversation import Conversations, settle, template_fields
from ray_job.prompts.messages import read_turns, shown_pictures
from ray_job.prompts.parts import ImageTag, Message, Part, Special, Text
from ray_job.spec import PromptSpec

SPECIALS = ("<|user|>", "<|end|>", "<|assistant|>", "<|system|>")


def conversations(row: dict[str, Any], num_pictures: int = 0, **prompt: Any) -> list[list[Message]]:
    return Conversations(PromptSpec(**prompt), SPECIALS).of_row(row, num_pictures)


def text_of(parts: tuple[Part, ...]) -> str:
    """Parts as one readable text; special ones in guillemets."""
    shown = {Text: lambda p: p.text, ImageTag: lambda p: f"«{p.index}»", Special: lambda p: f"«{p.token}»"}
    return "".join(shown[type(part)](part) for part in parts)


def one(row: dict[str, Any], num_pictures: int = 0, **prompt: Any) -> str:
    ((message,),) = conversations(row, num_pictures, **prompt)
    assert message.role == "user"
    return text_of(message.parts)


def test_a_template_is_filled_and_its_tags_place_the_pictures() -> None:
    template = "Compare <|image_2|> with <|image_1|>: {question} {{sic}}"
    assert one({"question": "which?"}, 2, template=template) == "Compare «2» with «1»: which? {sic}"


def test_pictures_without_tags_stand_first() -> None:
    assert one({"q": "what?"}, 2, template="{q}") == "«1»\n«2»\nwhat?"
    assert one({"q": "what?"}, 0, template="{q}") == "what?"


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ("literal", "«1»\na <|image_1|> b <|end|> c"),
        ("tags", "a «1» b <|end|> c"),
        ("special", "a «1» b «<|end|>» c"),
    ],
)
def test_text_from_columns_is_literal_unless_the_spec_says_otherwise(markup: str, expected: str) -> None:
    assert one({"q": "a <|image_1|> b <|end|> c"}, 1, template="{q}", column_markup=markup) == expected


def test_a_template_field_cannot_smuggle_another_field() -> None:
    assert one({"a": "{b}", "b": "secret"}, template="{a}") == "{b}"


def test_a_system_prompt_comes_first() -> None:
    ((system, user),) = conversations({"q": "hi"}, template="{q}", system="Be brief.")
    assert (system.role, text_of(system.parts), user.role) == ("system", "Be brief.", "user")


def test_a_list_of_questions_makes_a_conversation_each() -> None:
    row = {"qs": ["what?", "where?"], "name": "cat"}
    prompts = conversations(row, 1, template="{name}: {question}", questions_column="qs")
    assert [text_of(messages[0].parts) for messages in prompts] == ["«1»\ncat: what?", "«1»\ncat: where?"]
    prompts = conversations({}, 1, template="{question}", questions=["a?", "b <|image_1|>?"])
    assert [text_of(messages[0].parts) for messages in prompts] == ["«1»\na?", "b «1»?"]


def test_openai_messages_with_text_and_pictures() -> None:
    messages = [
        {"role": "system", "content": "Look."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "First "},
                {"type": "image_url", "image_url": {"url": "a.png"}},
                {"type": "image_url", "image_url": "b.png"},
            ],
        },
        {"role": "assistant", "content": "Seen."},
        {"role": "user", "content": "And?"},
    ]
    for value in (messages, json.dumps(messages)):
        (found,) = conversations({"m": value}, 2, messages_column="m")
        assert [(m.role, text_of(m.parts)) for m in found] == [
            ("system", "Look."),
            ("user", "First «1»\n«2»\n"),
            ("assistant", "Seen."),
            ("user", "And?"),
        ]
        assert shown_pictures(read_turns(value), []) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ("[", "not JSON"),
        ([], "at least one message"),
        ([{"role": "robot", "content": "x"}], "role must be one of"),
        ([{"role": "user", "content": 5}], "a text or a list of parts"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "a text or an image_url, got 'audio'"),
        (["x"], "role must be one of"),
    ],
)
def test_malformed_messages_are_the_rows_error(messages: Any, part: str) -> None:
    with pytest.raises(RowError, match=part) as caught:
        conversations({"m": messages}, messages_column="m")
    assert caught.value.code == ErrorCode.ROW_MALFORMED


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"q": None}, {"template": "{q}"}),
        ({"qs": None}, {"template": "{question}", "questions_column": "qs"}),
        ({"qs": []}, {"template": "{question}", "questions_column": "qs"}),
        ({"qs": ["a", None]}, {"template": "{question}", "questions_column": "qs"}),
    ],
)
def test_a_missing_question_is_the_rows_error(row: dict[str, Any], prompt: dict[str, Any]) -> None:
    with pytest.raises(RowError) as caught:
        conversations(row, **prompt)
    assert caught.value.code == ErrorCode.PROMPT_MISSING


def test_defaults_follow_the_columns() -> None:
    assert settle(PromptSpec(), ["id", "prompt", "question"]).template == "{prompt}"
    assert settle(PromptSpec(), ["question"]).template == "{question}"
    assert settle(PromptSpec(), ["messages", "question"], ["messages"]).messages_column == "messages"
    assert settle(PromptSpec(questions=["a?"]), []).template == "{question}"


@pytest.mark.parametrize(
    ("prompt", "part"),
    [
        ({}, "say what to ask"),
        ({"template": "{titel}"}, "no column 'titel'; did you mean 'title'?"),
        ({"template": "{title.x}"}, "not a plain column name"),
        ({"template": "{title"}, "prompt.template: expected '}'"),
        ({"template": "{title}", "questions": ["a?"]}, "has no {question} field"),
        ({"messages_column": "m"}, "prompt.messages_column: no column 'm'"),
    ],
)
def test_prompts_the_data_cannot_fill_are_refused(prompt: dict[str, Any], part: str) -> None:
    with pytest.raises(SpecError) as caught:
        settle(PromptSpec(**prompt), ["title", "image"])
    assert part in str(caught.value)


def test_template_fields_are_named_once_in_order() -> None:
    assert template_fields("{b} {a} {{c}} {b}") == ["b", "a"]
