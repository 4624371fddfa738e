"""Texts and control tokens to ids: against tokenizers that prepend, merge, strip, and hold control tokens as words."""

from __future__ import annotations

import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ray_job.engine.stops import StopSearch
from ray_job.errors import ModelError, RowError
from ray_job.models.auto.tokenizer import NONCHARACTERS, ChatTokenizer, Shown
from ray_job.prompts.parts import Special, Text
from tests.models.auto.chat_tokenizers import BOS_ID, EOS, tokenizer

_KINDS = ("bytes", "llama", "gemma")
_MARKS = ["<image>", "<|user|>", "<think>"]


def library(kind: str, *more: AddedToken) -> PreTrainedTokenizerFast:
    made = tokenizer(kind, _MARKS)
    made.add_tokens(list(more))
    return made


def pieces_of(chat: ChatTokenizer, text: str) -> list[Text | Special]:
    return list(chat.split(text))


@pytest.mark.parametrize("kind", _KINDS)
def test_random_prompts_get_the_librarys_ids(kind: str) -> None:
    """Words, white space, bytes and control tokens in any order, read at once by the library."""
    added = [
        AddedToken("<left>", lstrip=True, special=True, normalized=False),
        AddedToken("<right>", rstrip=True, special=True, normalized=False),
        AddedToken("\n\n\n", special=False, normalized=False),
        AddedToken("<td>", special=False, normalized=False),
    ]
    whole = library(kind, *added)
    chat = ChatTokenizer(whole, {"<image>"}, "")
    assert "<td>" not in chat.control
    rng = random.Random(1)
    words = [
        "the",
        "thing",
        " ",
        "  ",
        "\n",
        "\n\n\n",
        "é",
        "🎉",
        "\u3000",
        "<td>",
        "<t",
        *_MARKS,
        "<left>",
        "<right>",
        EOS,
    ]
    for _ in range(300):
        text = "".join(rng.choices(words, k=rng.randint(0, 12)))
        assert chat.encode(pieces_of(chat, text)) == whole(text)["input_ids"], repr(text)


@pytest.mark.parametrize("kind", _KINDS)
def test_a_prompt_that_begins_itself_gets_no_second_beginning(kind: str) -> None:
    chat = ChatTokenizer(library(kind), (), "")
    ids = chat.encode([Special("<s>"), Text("the")])
    assert ids.count(BOS_ID) == 1
    assert chat.encode([Text("the")]).count(BOS_ID) == (kind != "bytes")


@pytest.mark.parametrize("kind", _KINDS)
def test_text_stays_text(kind: str) -> None:
    chat = ChatTokenizer(library(kind), {"<image>"}, "writes <think>")
    ids = chat.encode([Special("<|user|>"), Text("a <|user|></s><image><think>"), Shown(2, 3, "<image>"), Text("!")])
    assert [each for each in ids if each in (chat.id_of("<|user|>"), chat.id_of("<think>"))] == [chat.id_of("<|user|>")]
    assert ids.count(-2) == 3
    decoded = chat.decode([each for each in ids if each >= 0])
    assert decoded.replace(" ", "") == "a<|user|></s><image><think>!"


def words_as_tokens() -> PreTrainedTokenizerFast:
    """A tokenizer that takes a whole word of its vocabulary, as Llama 3's does; control tokens are among them."""
    letters = {char: at for at, char in enumerate(["<", ">", "s", "/", "a", "▁", "<s>", "</s>", "aa"])}
    made = Tokenizer(models.BPE(vocab=letters, merges=[("a", "a")], ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    made.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def test_a_word_that_is_a_control_token_stays_text() -> None:
    whole = words_as_tokens()
    chat = ChatTokenizer(whole, (), "")
    assert whole.backend_tokenizer.model.token_to_id("<s>") == chat.id_of("<s>")
    for text in ("<s>", "</s>", "<s> aa </s>", "<s></s>"):
        ids = chat.encode([Special("<s>"), Text(text), Special("</s>")])
        assert ids[0] == chat.id_of("<s>")
        assert ids[-1] == chat.id_of("</s>")
        assert {chat.id_of("<s>"), chat.id_of("</s>")}.isdisjoint(ids[1:-1])
        assert "".join(whole.convert_ids_to_tokens(ids[1:-1])).replace("▁", " ") == text


@pytest.mark.parametrize("text", ["", "aa", " aa", "aa aa"])
def test_the_first_text_alone_gets_a_space_where_the_tokenizer_says_so(text: str) -> None:
    whole = words_as_tokens()
    chat = ChatTokenizer(whole, (), "")
    for prompt in (f"<s>{text}", f"{text}<s>{text}</s>{text}"):
        assert chat.encode(pieces_of(chat, prompt)) == whole(prompt)["input_ids"]


def test_noncharacters_and_unknown_tokens_are_refused() -> None:
    chat = ChatTokenizer(library("bytes"), (), "")
    for character in NONCHARACTERS:
        with pytest.raises(RowError, match="noncharacter"):
            chat.encode([Special("<s>"), Text(f"a{character}")])
    with pytest.raises(ModelError, match="no special token '<none>'"):
        chat.encode([Special("<none>")])


@pytest.mark.parametrize("kind", _KINDS)
def test_a_stop_string_is_found_at_the_token_that_completes_it(kind: str) -> None:
    """Decoding a window of an answer says what decoding the whole says."""
    chat = ChatTokenizer(library(kind), (), "")
    rng = random.Random(2)
    for _ in range(40):
        ids = [rng.randrange(300) for _ in range(120)] + chat.encode([Text("the é thing")])[1:]
        for stop in ("the", "é t", "🎉", " "):
            search = StopSearch([stop], chat.decode)
            told = next((at for at, each in enumerate(ids) if search.ends_with(each)), None)
            expected = next((at for at in range(len(ids)) if stop in chat.decode(ids[: at + 1]).rstrip("\ufffd")), None)
            assert told is not None or expected is None
            assert expected is None or told == expected


def test_ids_that_the_vocabulary_does_not_have_give_nothing() -> None:
    chat = ChatTokenizer(library("bytes"), (), "")
    ids = chat.encode([Text("the")])
    assert chat.decode([*ids, 100_000]) == "the"
