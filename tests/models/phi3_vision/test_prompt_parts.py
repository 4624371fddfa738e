"""Reading trusted strings into parts."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ray_job.prompts.parts import ImageTag, Special, Text, parse_markup, parse_specials, parse_tags

SPECIALS = ["<|user|>", "<|end|>", "<|image|>", "<|a", "<|a|>"]


def test_official_prompt() -> None:
    assert parse_markup("<|user|>\n<|image_1|>\nhi<|end|>\n", SPECIALS) == [
        Special("<|user|>"),
        Text("\n"),
        ImageTag(1),
        Text("\nhi"),
        Special("<|end|>"),
        Text("\n"),
    ]


def test_tags_alone() -> None:
    assert parse_tags("<|user|><|image_12|><|image|>") == [Text("<|user|>"), ImageTag(12), Text("<|image|>")]
    assert parse_tags("") == []


def test_specials_alone() -> None:
    assert parse_specials("<|image_1|><|end|>", SPECIALS) == [Text("<|image_1|>"), Special("<|end|>")]
    assert parse_specials("<|end|>", []) == [Text("<|end|>")]
    assert parse_markup("<|end|>", []) == [Text("<|end|>")]


def test_the_longer_special_wins() -> None:
    assert parse_markup("<|a|>b", SPECIALS) == [Special("<|a|>"), Text("b")]


@settings(deadline=None)
@given(st.lists(st.sampled_from([*SPECIALS, "<|image_1|>", "<|image_2|>", "<|", "x", " ", "\n"])))
def test_parts_spell_the_string(pieces: list[str]) -> None:
    text = "".join(pieces)
    spelled = ""
    for part in parse_markup(text, SPECIALS):
        match part:
            case Text(chars):
                spelled += chars
            case Special(token):
                spelled += token
            case ImageTag(index):
                spelled += f"<|image_{index}|>"
    assert spelled == text
