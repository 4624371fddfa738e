"""The demo's tokenizer: whole words, single characters for printed text, the official order of special tokens."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ray_job.demo.pictures import COLOURS, SHAPES, TEXT_COLOURS
from ray_job.demo.questions import make_split
from ray_job.demo.training.phi3_vision import Phi3VisionPreparation
from ray_job.demo.training.tokenizer import build_tokenizer, question_words, save_tokenizer
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_text_survives_encoding_and_decoding(tokenizer: Tokenizer) -> None:
    texts = ["What colour is the circle?", "HOUSE", "40713", "a  b\n c", "Ünïcode 漢字 🙂", '{"x": 1}', ""]
    for text in texts + [qa.question for example in make_split("test", 100) for qa in example.questions]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_words_of_questions_are_one_token_each(tokenizer: Tokenizer) -> None:
    for word in question_words():
        assert tokenizer.encode(word, add_special_tokens=False).tokens == ["▁" + word]


def test_json_answers_are_words_digits_and_what_joins_them(tokenizer: Tokenizer) -> None:
    described = {
        '{"colour":"red","shape":"circle","count":3}': '{" colour ":" red "," shape ":" circle "," count ": 3 }',
        '{"text":"407","colour":"black"}': '{" text ":" 4 0 7 "," colour ":" black "}',
    }
    for text, tokens in described.items():
        assert tokenizer.encode(text, add_special_tokens=False).tokens == ["▁", *tokens.split()]


def test_every_json_answer_begins_with_its_brace_and_survives(folder: Path) -> None:
    processor = Phi3VisionProcessor.from_pretrained(folder)
    preparation = Phi3VisionPreparation(processor, patches_per_side=8)
    answers = [
        json.dumps({"colour": colour, "shape": shape, "count": count}, separators=(",", ":"))
        for colour, shape, count in itertools.product(COLOURS, SHAPES, range(1, 5))
    ]
    answers += [f'{{"text":"{number:03}","colour":"{TEXT_COLOURS[number % 5]}"}}' for number in range(1000)]
    for answer in answers:
        *ids, end = preparation.answer_ids(answer)
        assert end in processor.stop_ids
        assert len(ids) <= 13
        assert processor.decode(ids[:1]) == '{"'
        assert processor.decode(ids) == answer


def test_printed_text_is_one_token_for_each_character(tokenizer: Tokenizer) -> None:
    for text in ("STAR", "IS", "WHAT", "10432"):
        assert tokenizer.encode(text, add_special_tokens=False).tokens == ["▁", *text]


def test_special_tokens_stand_as_officially(tokenizer: Tokenizer) -> None:
    first = tokenizer.token_to_id("<|endoftext|>")
    places = {"<|assistant|>": 1, "<|system|>": 6, "<|end|>": 7, "<|user|>": 10}
    assert {name: tokenizer.token_to_id(name) - first for name in places} == places
    assert [tokenizer.token_to_id(name) for name in ("<unk>", "<s>", "</s>")] == [0, 1, 2]


def test_the_processor_reads_it(folder: Path) -> None:
    processor = Phi3VisionProcessor.from_pretrained(folder)
    assert processor.num_crops == 2
    encoded = processor.process("<|user|>\nCount the stars.<|end|>\n<|assistant|>\n")
    assert processor.decode(encoded.input_ids, skip_special_tokens=False).startswith("<s><|user|>")


def test_building_it_again_gives_the_same_file(folder: Path) -> None:
    assert json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")) == build_tokenizer()
