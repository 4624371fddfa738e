"""Answers chosen at random among the tokens that a form allows conform to it, whatever the tokenizer."""

from __future__ import annotations

import itertools
import json
import random
import re

import jsonschema
import numpy as np
import pytest

from ray_job.errors import ErrorCode, ModelError, RowError
from ray_job.spec import StructuredOutputs
from ray_job.structured.matchers import TokenizerForms
from tests.engine.test_schemas import SCHEMAS
from tests.structured.walks import BEYOND, END, KINDS, STRIPPING, allowed, model, walk


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_conform_to_their_schema(name: str, kind: str) -> None:
    rng = random.Random(len(name))
    validator = jsonschema.Draft202012Validator(SCHEMAS[name], format_checker=jsonschema.FormatChecker())
    texts = [walk(kind, rng, json=SCHEMAS[name])[1] for _ in range(4)]
    assert sum(text is not None for text in texts) > 1
    for text in texts:
        if text is not None:
            validator.validate(json.loads(text))
            assert re.sub(r'"(?:[^"\\]|\\.)*"', '""', text).replace(": ", ":").replace(", ", ",").count(" ") == 0


@pytest.mark.parametrize("kind", KINDS)
def test_any_object_is_one_and_ends(kind: str) -> None:
    rng = random.Random(1)
    ended = [text for _ in range(30) if (text := walk(kind, rng, json=True)[1]) is not None]
    assert len(ended) > 2
    assert all(isinstance(json.loads(text), dict) for text in ended)


CHOICES = ["yes", " yes", "  the", "no", "größe 🛑", "", "<|im_end|>s", "the end", "\n"]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_all_of_the_choices_and_nothing_else(kind: str) -> None:
    rng = random.Random(2)
    found = {walk(kind, rng, choice=CHOICES)[1] for _ in range(400)}
    # Where the first token loses all its spaces, no token writes one at the beginning but a byte's.
    assert found == set(CHOICES)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_accepted_just_where_their_text_is_in_the_language(kind: str) -> None:
    """All short sequences of some tokens: decoding says which are answers, and so does the matcher."""
    own = model(kind)
    language = ["ye", " ye", "no", "n", " n", "y s", "  n"]
    fresh = own.forms.matcher(StructuredOutputs(choice=tuple(language)), 9)
    words = ["n", "o", "y", "e", "s", " ", " y", "▁", "▁y", "▁n", "Ġ", "<0x20>", "<0x6E>", "▁▁", "▁▁▁"]
    ids = [found for word in words if (found := own.tokenizer.token_to_id(word)) is not None]
    ids.append(own.num_known + 3)
    num_accepted = 0
    for length in (1, 2, 3):
        for sequence in itertools.product(ids, repeat=length):
            matcher = fresh.copy()
            try:
                for token_id in sequence:
                    matcher.take(token_id)
            except ValueError:
                accepted = False
            else:
                accepted = matcher.may_end
            writes = max(sequence) < own.num_known
            loses_more = kind == "metaspace" and own.tokenizer.id_to_token(sequence[0]) in ("▁▁", "▁▁▁")
            assert accepted == (writes and not loses_more and own.decode(sequence) in language), sequence
            num_accepted += accepted
    assert num_accepted >= 6


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_token_may_come_with_a_space_just_where_decoding_drops_it(kind: str) -> None:
    own = model(kind)
    matcher = own.forms.matcher(StructuredOutputs(regex="the [a-z]+"), 9)
    if kind not in STRIPPING:
        assert own.decode(matcher.forced_ids()).startswith("the")
        return
    assert matcher.forced_ids() == [], "the model chooses between the text and the text behind a space"
    first = allowed(own.forms, matcher)
    assert any(own.tokenizer.id_to_token(token_id).startswith("▁") for token_id in first)
    assert any(not own.tokenizer.id_to_token(token_id).startswith("▁") for token_id in first)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_beyond_the_tokenizer_and_special_ones_are_never_allowed(kind: str) -> None:
    own = model(kind)
    matcher = own.forms.matcher(StructuredOutputs(regex="(.|\n)*"), 9)
    ids = set(allowed(own.forms, matcher))
    assert max(ids) < own.num_known
    assert own.stop_ids <= ids, "all that end an answer"
    added = own.tokenizer.get_added_tokens_decoder()
    special = {token_id for token_id, token in added.items() if token.special} - own.stop_ids
    assert special
    assert not special & ids
    matcher.take(own.tokenizer.encode("a", add_special_tokens=False).ids[-1])
    assert own.stop_ids <= set(allowed(own.forms, matcher))
    assert not special & set(allowed(own.forms, matcher))
    for token_id in (*special, own.num_known + BEYOND - 1):
        with pytest.raises(ValueError, match="writes no text"):
            matcher.copy().take(token_id)


def test_text_that_spells_a_special_token_is_written_without_it() -> None:
    rng = random.Random(0)
    for kind in KINDS:
        name = "<|end|>" if kind == "demo" else END
        ids, text = walk(kind, rng, regex=re.escape(name) + "x")
        assert text == f"{name}x"
        assert model(kind).stop_ids.isdisjoint(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_ends_just_where_its_form_is_whole(kind: str) -> None:
    own = model(kind)
    matcher = own.forms.matcher(StructuredOutputs(choice=("no", "nothing")), 9)
    for stop_id in own.stop_ids:
        with pytest.raises(ValueError, match="before its form is whole"):
            matcher.copy().take(stop_id)
        assert stop_id not in allowed(own.forms, matcher)
    for letter in "no":
        matcher.take(_letter(kind, letter))
    assert (matcher.may_end, matcher.is_complete) == (True, False)
    for stop_id in own.stop_ids:
        ended = matcher.copy()
        ended.take(stop_id)
        assert ended.is_complete
    for letter in "thing":
        matcher.take(_letter(kind, letter))
    assert matcher.is_complete


def _letter(kind: str, letter: str) -> int:
    token_id: int = model(kind).tokenizer.token_to_id(letter)
    return token_id


def test_masks_of_many_are_those_of_each_alone() -> None:
    own = model("llama")
    forms = [StructuredOutputs.model_validate({"json": schema}) for schema in SCHEMAS.values()]
    matchers = [own.forms.matcher(form, 50) for form in forms * 3]
    for number, matcher in enumerate(matchers):
        for _ in range(number % 5):
            matcher.take(allowed(own.forms, matcher)[0])
    masks_BW = np.full((len(matchers), own.forms.num_words), -1, np.int32)
    own.forms.fill_masks(matchers, masks_BW)
    for matcher, mask_W in zip(matchers, masks_BW, strict=True):
        alone_BW = np.zeros((1, own.forms.num_words), np.int32)
        own.forms.fill_masks([matcher], alone_BW)
        assert (alone_BW[0] == mask_W).all()


def test_what_one_answer_takes_is_not_anothers() -> None:
    own = model("bytes")
    form = StructuredOutputs(choice=("ab", "cd"))
    one, other = own.forms.matcher(form, 9), own.forms.matcher(form, 9)
    one.take(_letter("bytes", "a"))
    other.take(_letter("bytes", "c"))
    assert (own.decode(one.forced_ids()), own.decode(other.forced_ids())) == ("b", "d")


def test_a_form_that_cannot_be_followed_is_its_rows_error_and_a_jobs_end() -> None:
    forms, own = model("bytes").forms, StructuredOutputs.model_validate({"json": {"type": "objekt"}})
    with pytest.raises(RowError, match=r"^structured_outputs\.json: at its top: type 'objekt' does not exist") as row:
        forms.matcher(own, 9)
    assert row.value.code == ErrorCode.PARAMS_INVALID
    with pytest.raises(ModelError, match=r"^generation\.structured_outputs\.json: at its top: type 'objekt'"):
        forms.load(own)
    assert forms.matcher(StructuredOutputs(choice=("a",)), 9), "others go on"


def test_a_form_that_breaks_while_it_is_followed_says_so() -> None:
    own = model("demo")
    matcher = own.forms.matcher(StructuredOutputs(regex="(a{1000}){1000}"), 9)
    with pytest.raises((RuntimeError, ValueError), match="too many expressions"):  # noqa: PT012 when is the library's to say
        for _ in range(3):
            matcher.take(allowed(own.forms, matcher)[0])


def test_a_tokenizer_that_cannot_be_read_is_said() -> None:
    forms = TokenizerForms(lambda: "{}", 9, [1], lambda _: "")
    with pytest.raises(RowError, match="cannot be followed with this model's tokenizer"):
        forms.matcher(StructuredOutputs(choice=("a",)), 9)


def test_compiled_forms_are_kept_and_few(monkeypatch: pytest.MonkeyPatch) -> None:
    own = model("bytes")
    whole = own.tokenizer.to_str()
    forms = TokenizerForms(lambda: whole, own.num_known, own.stop_ids, own.decode, threads=1)
    compiled: list[str] = []
    original = TokenizerForms._parser
    monkeypatch.setattr(TokenizerForms, "_parser", lambda self, text: compiled.append(text) or original(self, text))
    for _ in range(1000):
        forms.matcher(StructuredOutputs.model_validate({"json": SCHEMAS["flat"]}), 9)
    assert len(compiled) == 1
    for number in range(100):
        forms.matcher(StructuredOutputs(choice=(str(number),)), 9)
    assert len(forms._kept) == 64
