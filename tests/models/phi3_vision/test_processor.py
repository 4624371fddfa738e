"""Token ids against the official processor, and the promise that text never becomes a special token."""

from __future__ import annotations

import functools
import json
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ray_job.errors import ErrorCode, ModelError, RowError
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor, ProcessorOptions
from ray_job.prompts.parts import ImageTag, Message, Part, Special, Text, parse_markup, parse_tags

from .oracle import GOLDEN, expand, open_image, read_json

PROCESSOR = read_json("processor.json")
GOOD = [case for case in PROCESSOR["cases"] if case["status"] == "ok" and case["name"] != "tag_repeated_one_image"]
# Official errors that are ours too. The others were limits of its batching, which `process_batch` does not have.
BAD = [case for case in PROCESSOR["cases"] if case["name"].startswith("err_") and isinstance(case["text"], str)]
PAD = 32000

TINY = Phi3VisionProcessor(GOLDEN / "tiny-mha", ProcessorOptions())


def named(case: dict[str, Any]) -> str:
    return case["name"]


@functools.cache
def processor_with(folder: Path, num_crops: int | None) -> Phi3VisionProcessor:
    return Phi3VisionProcessor.from_pretrained(folder, num_crops)


@pytest.fixture(scope="module")
def processor(official: Path) -> Phi3VisionProcessor:
    return processor_with(official, None)


@pytest.mark.parametrize("case", GOOD, ids=named)
def test_ids_are_the_official_ones(case: dict[str, Any], official: Path) -> None:
    processor = processor_with(official, case["num_crops"])
    texts = case["text"] if isinstance(case["text"], list) else [case["text"]]
    images = None if case["images"] is None else [open_image(name) for name in case["images"]]
    encoded = processor.process_batch(texts, [images] * len(texts))
    for sample, runs, length in zip(encoded, case["input_ids_rle"], case["attention_mask_sum"], strict=True):
        assert sample.input_ids == expand(runs)[:length]
        assert set(expand(runs)[length:]) <= {PAD}
        sizes = [list(picture.shape[:2]) for picture in sample.pictures]
        assert sizes == case.get("image_sizes", [])


@pytest.mark.parametrize("case", BAD, ids=named)
def test_wrong_tags_are_an_error_of_the_row(case: dict[str, Any], official: Path) -> None:
    processor = processor_with(official, case["num_crops"])
    images = [open_image(name) for name in case["images"]]
    if not images:  # officially an IndexError; without tags an empty list is simply no picture
        assert processor.process(case["text"], images).input_ids == processor.process(case["text"]).input_ids
        return
    with pytest.raises(RowError) as caught:
        processor.process(case["text"], images)
    assert caught.value.code is ErrorCode.PROMPT_TAGS


@pytest.mark.parametrize("text", PROCESSOR["encode_probes"])
def test_tokenizer_probes(text: str, processor: Phi3VisionProcessor) -> None:
    assert processor.process(text).input_ids == PROCESSOR["encode_probes"][text]


@pytest.mark.parametrize("case", PROCESSOR["chat_template"], ids=named)
def test_chat_template(case: dict[str, Any], processor: Phi3VisionProcessor) -> None:
    messages = [Message(message["role"], (Text(message["content"]),)) for message in case["messages"]]
    parts = processor.chat_parts(messages, case["add_generation_prompt"])
    assert spell(parts) == case["text"]
    assert processor.encode(parts, []) == case["ids_of_text_via_tokenizer_call"]
    assert processor.encode(parts, [])[1:] == case["ids"]


def test_chat_with_pictures_equals_the_official_string(processor: Phi3VisionProcessor) -> None:
    for case in PROCESSOR["chat_template"]:
        messages = [Message(turn["role"], tuple(parse_tags(turn["content"]))) for turn in case["messages"]]
        counts = [7] * case["text"].count("<|image_")
        want = processor.encode(parse_markup(case["text"], processor.special_tokens), counts)
        assert processor.encode(processor.chat_parts(messages), counts) == want


def test_decode(processor: Phi3VisionProcessor) -> None:
    decode = PROCESSOR["decode"]
    assert processor.decode(decode["ids"]) == decode["skip_special_true"]
    assert processor.decode(decode["ids"], skip_special_tokens=False) == decode["skip_special_false"]
    answer = decode["ids"][18:]
    assert processor.decode(answer) == decode["generated_only_skip_true"]
    assert processor.decode(answer, skip_special_tokens=False) == decode["generated_only_skip_false"]
    with pytest.raises(ValueError, match="cut the prompt off"):
        processor.decode([-1, 5])


def test_special_ids(processor: Phi3VisionProcessor) -> None:
    official = PROCESSOR["special_ids"]
    assert (processor.bos_id, processor.pad_id) == (1, PROCESSOR["tokenizer"]["pad_token_id"])
    assert processor.stop_ids == (official["<|end|>"], official["<|endoftext|>"])
    assert processor.num_crops == 16
    assert set(official) - {"<|image_1|>"} <= processor.special_tokens
    assert TINY.stop_ids == (367, 360)


def test_official_geometry_without_config(official: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "preprocessor_config.json"):
        shutil.copyfile(official / name, tmp_path / name)
    assert Phi3VisionProcessor.from_pretrained(tmp_path).options == ProcessorOptions()


def test_token_counts_follow_from_the_size_alone() -> None:
    for num_crops, rows in read_json("hd_sizes.json")["num_crops"].items():
        processor = Phi3VisionProcessor(GOLDEN, ProcessorOptions(num_crops=int(num_crops)))
        for width, height, _, _, tokens in rows:
            if tokens is not None:
                assert processor.image_tokens(width, height) == tokens


def test_swapped_tags_keep_their_pictures() -> None:
    ids = TINY.encode([ImageTag(2), Text("and"), ImageTag(1)], [3, 5])
    assert [token_id for token_id in ids if token_id < 0] == [-2] * 5 + [-1] * 3


@pytest.mark.parametrize("tags", [[], [1], [1, 1], [2, 3], [0, 1], [1, 2, 3]])
def test_tags_must_be_each_picture_once(tags: list[int]) -> None:
    with pytest.raises(RowError, match="each once") as caught:
        TINY.encode([ImageTag(tag) for tag in tags], [3, 3])
    assert caught.value.code is ErrorCode.PROMPT_TAGS


def test_batch_must_be_even() -> None:
    assert len(TINY.process_batch(["a", "b"], [None, []])) == 2
    with pytest.raises(ValueError):
        TINY.process_batch(["a"], [])


def test_no_messages() -> None:
    with pytest.raises(RowError, match="at least one message"):
        TINY.chat_parts([])


def test_pickle_is_small_and_works(tiny_folder: Path) -> None:
    processor = Phi3VisionProcessor.from_pretrained(tiny_folder, num_crops=4)
    processor.encode([Text("used")], [])
    data = pickle.dumps(processor)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert again.options == processor.options
    assert again.encode([Text("used")], []) == processor.encode([Text("used")], [])


def test_broken_folders(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"preprocessor_config.json does not exist"):
        Phi3VisionProcessor.from_pretrained(tmp_path)
    shutil.copyfile(tiny_folder / "preprocessor_config.json", tmp_path / "preprocessor_config.json")
    with pytest.raises(ModelError, match=r"tokenizer.json does not exist"):
        Phi3VisionProcessor.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"not a tokenizer.json"):
        Phi3VisionProcessor.from_pretrained(tmp_path)
    content = json.loads((tiny_folder / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<|end|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"lacks the special tokens <\|end\|>"):
        Phi3VisionProcessor.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="num_crops is 0"):
        Phi3VisionProcessor.from_pretrained(tiny_folder, num_crops=0)
    with pytest.raises(ModelError, match=r"lacks the special tokens <\|nobody\|>"):
        TINY.encode([Special("<|nobody|>")], [])


# Whitespace that a special token swallows, and control characters it must not.
SPACES = [" ", "  ", "\n", "\t", "\x1c", "\x85", "\u00a0", "\u3000", "\u200b"]
PLAIN = ["a", "th", "é", "画", "🙂", "<|", "|>", "<s", "_", "1"]
SPECIAL = sorted(TINY.special_tokens - {"<|image|>"})
pieces = st.lists(st.sampled_from([*SPACES, *PLAIN, *SPECIAL]), max_size=12)


@settings(deadline=None)
@given(pieces)
def test_markup_is_tokenized_as_by_the_whole_tokenizer(found: list[str]) -> None:
    text = "".join(found)
    assert TINY.process(text).input_ids == whole_tokenizer(GOLDEN / "tiny-mha").encode(text).ids


@settings(deadline=None)
@given(pieces)
def test_markup_is_tokenized_officially(processor: Phi3VisionProcessor, found: list[str]) -> None:
    text = "".join(found)
    assert processor.process(text).input_ids == whole_tokenizer(processor.folder).encode(text).ids


@settings(deadline=None)
@given(st.lists(st.one_of(pieces.map("".join), st.text()), max_size=4))
def test_text_never_becomes_a_special_token(texts: list[str]) -> None:
    """Not alone, not across neighbouring texts, and nothing of it is lost."""
    ids = TINY.encode([Text(text) for text in texts], [])
    assert not special_ids(TINY) & set(ids[1:])
    # The tokenizer itself writes a space as ▁, so that character alone comes back as a space.
    assert TINY.decode(ids[1:], skip_special_tokens=False) == "".join(texts).replace("▁", " ")


@settings(deadline=None)
@given(st.one_of(pieces.map("".join), st.text()))
def test_text_never_becomes_a_special_token_officially(processor: Phi3VisionProcessor, text: str) -> None:
    ids = processor.encode([Special("<|user|>"), Text("\n" + text), Special("<|end|>")], [])
    assert not special_ids(processor) & set(ids[2:-1])
    assert processor.decode(ids[2:-1], skip_special_tokens=False) == "\n" + text.replace("▁", " ")


@pytest.mark.parametrize("text", ["</s>", "<unk>", "<s>", "<|end|>", "<|image_1|>", "<|endoftext|>", "<|image|>"])
def test_spelled_out_tokens_stay_characters(processor: Phi3VisionProcessor, text: str) -> None:
    for tokenizer in (processor, TINY):
        ids = tokenizer.encode([Text(text)], [])
        assert not special_ids(tokenizer) & set(ids[1:])
        assert min(ids) > 0
        assert tokenizer.decode(ids[1:], skip_special_tokens=False) == text


@functools.cache
def whole_tokenizer(folder: Path) -> Tokenizer:
    """The file as it is: the backend of PreTrainedTokenizerFast, which equals the official ids."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def special_ids(processor: Phi3VisionProcessor) -> set[int]:
    return set(whole_tokenizer(processor.folder).get_added_tokens_decoder())


def spell(parts: Sequence[Part]) -> str:
    return "".join(part.text if isinstance(part, Text) else part.token for part in parts)
