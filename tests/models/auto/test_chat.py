"""A chat template's control tokens and those that texts spell, whatever the template does with the texts."""

from __future__ import annotations

import pytest

from ray_job.errors import RowError
from ray_job.models.auto.chat import ChatTemplate
from ray_job.prompts.parts import ImageTag, Message, Special, Text
from tests.models.auto.conversations import told, user

_CONTROL = ["<s>", "</s>", "<image>", "<|user|>", "</think>"]
_TEXTS = "{% for each in m.content %}{% if each.type == 'text' %}{{ each.text }}{% endif %}{% endfor %}"
_IMAGES = "{% for each in m.content %}{% if each.type == 'image' %}<image>{% endif %}{% endfor %}"
_PICTURES_FIRST = "{% for m in messages %}<|user|>" + _IMAGES + _TEXTS + "</s>{% endfor %}"


def chat(template: str) -> ChatTemplate:
    return ChatTemplate(template, {"bos_token": "<s>"}, _CONTROL, "<image>")


def each_way() -> list[tuple[str, str]]:
    return [(token[:cut], token[cut:]) for token in _CONTROL for cut in range(1, len(token))]


@pytest.mark.parametrize(("before", "after"), each_way())
def test_texts_that_come_together_make_no_token(before: str, after: str) -> None:
    """The template takes the picture from between them."""
    parts = chat(_PICTURES_FIRST).parts([user(f"a {before}", 1, f"{after} b")])
    assert parts == [Special("<|user|>"), Special("<image>"), Text(f"a {before}{after} b"), Special("</s>")]


@pytest.mark.parametrize(("before", "after"), each_way())
def test_a_template_and_a_text_together_make_no_token(before: str, after: str) -> None:
    template = "{% for m in messages %}" + before + _TEXTS + after + "{% endfor %}"
    assert chat(template).parts([user(f"{after} b")]) == [Text(f"{before}{after} b{after}")]
    assert chat(template).parts([user(f"a {before}")]) == [Text(f"{before}a {before}{after}")]


def test_a_template_that_trims_finds_the_texts_ends() -> None:
    template = "{% for m in messages %}<s>{% for each in m.content %}{{ each.text | trim }}{% endfor %}{% endfor %}"
    for text in ("<s>", "<|user|> <", "> </s>", "x </s"):
        assert chat(template).parts([user(f"  {text} \n")]) == [Special("<s>"), Text(text)]


def test_a_template_that_looks_into_texts_finds_what_they_hold() -> None:
    """Earlier reasoning is left out, as Qwen's templates do it."""
    template = "{% for m in messages %}<|user|>{{ m.content[0].text.split('</think>')[-1] }}{% endfor %}"
    found = chat(template).parts([user("I think so</think>yes"), user("no")])
    assert found == [Special("<|user|>"), Text("yes"), Special("<|user|>"), Text("no")]


def test_trusted_tokens_are_tokens() -> None:
    message = Message("user", (Text("a <s>"), Special("<s>"), Text("<s> b"), ImageTag(1)))
    expected = [Special("<image>"), Text("a <s>"), Special("<s>"), Text("<s> b")]
    assert chat(_PICTURES_FIRST).parts([message]) == [Special("<|user|>"), *expected, Special("</s>")]


def test_a_system_prompt_that_is_not_shown_is_refused() -> None:
    template = "{% for m in messages if m.role != 'system' %}" + _TEXTS + "{% endfor %}"
    assert not chat(template).takes_system
    with pytest.raises(RowError, match="no place for a system prompt"):
        chat(template).parts([told("system", "Be brief."), user("x")])


def test_the_beginning_of_an_answer_ends_the_prompt() -> None:
    template = _PICTURES_FIRST + "{% if add_generation_prompt %}<|user|>{% endif %}"
    parts = chat(template).parts([user("x"), told("assistant", "It is")])
    assert parts == [Special("<|user|>"), Text("x"), Special("</s>"), Special("<|user|>"), Text("It is")]


def test_noncharacters_are_refused() -> None:
    for character in "\ufdd0\ufdd1\ufdd2":
        with pytest.raises(RowError, match="noncharacter"):
            chat(_PICTURES_FIRST).parts([user(f"a{character}")])
