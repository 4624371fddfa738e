"""The demo model's own small tokenizer, in the layout of Phi-3-Vision's: Llama-style BPE with byte fallback.

Every lower-case word of the questions is one token, and so is the punctuation between two words of a JSON answer.
Capitals and digits are never merged, so printed text is answered character by character. Special tokens follow the
plain ones in the official order and distance, so `<|end|>` is seven after `<|endoftext|>` here as there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ray_job.demo.pictures import COLOURS, SHAPES
from ray_job.demo.questions import make_example

_SPACE = "▁"
_FIRST = ("<unk>", "<s>", "</s>")
_ADDED = (
    "<|endoftext|>",
    "<|assistant|>",
    *(f"<|placeholder{number}|>" for number in range(1, 5)),
    "<|system|>",
    "<|end|>",
    "<|placeholder5|>",
    "<|placeholder6|>",
    "<|user|>",
)
_KEEPS_SPACE = ("<unk>", "<s>", "<|endoftext|>", "<|system|>", "<|end|>", "<|user|>")
_JSON_PUNCTUATION = ('{"', '":', '":"', '",', '","', '"}')  # each made of an earlier one or a character, and one more
_CORPUS_SEEDS = range(3000)  # enough to meet every word of every phrasing
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}"
    "{{- '<|assistant|>\n' -}}{% endif %}"
)


def question_words() -> list[str]:
    """Every word of the questions and answers that is not printed text, shorter ones first."""
    words = {*COLOURS, *SHAPES, *(name + "s" for name in SHAPES)}
    for seed in _CORPUS_SEEDS:
        for qa in make_example(seed).questions:
            answer = "" if qa.answer.isupper() else qa.answer
            words.update(re.findall(r"[A-Z]?[a-z]+", f"{qa.question} {answer}"))
    return sorted(words, key=lambda word: (len(word), word))


def build_tokenizer(words: Sequence[str] | None = None) -> dict[str, Any]:
    """The content of tokenizer.json."""
    words = question_words() if words is None else words
    vocabulary = [*_FIRST, *(f"<0x{byte:02X}>" for byte in range(256)), _SPACE, *map(chr, range(0x21, 0x7F))]
    merges = _merges(words)
    vocabulary += dict.fromkeys(left + right for left, right in merges)
    num_plain = len(vocabulary)
    added = [*enumerate(_FIRST), *enumerate(_ADDED, num_plain)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token_id, "content": name, **_flags(name)} for token_id, name in added],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": _SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": _post_processor(),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {token: token_id for token_id, token in enumerate(vocabulary)},
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }


def generated_ids(answer: str, ids: Sequence[int]) -> Sequence[int]:
    """Of an encoded answer: all but the space before JSON, which a grammar without white space does not allow."""
    return ids[1:] if answer.startswith("{") else ids


def save_tokenizer(folder: Path, num_crops: int = 2, tokens_per_crop: int = 16) -> dict[str, int]:
    """Writes the four processor files; returns the ids of the added tokens by name."""
    folder.mkdir(parents=True, exist_ok=True)
    content = build_tokenizer()
    special = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    files: dict[str, Any] = {
        "tokenizer.json": content,
        "special_tokens_map.json": special,
        "tokenizer_config.json": {
            **special,
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": {
                str(token["id"]): {key: value for key, value in token.items() if key != "id"}
                for token in content["added_tokens"]
            },
            "chat_template": _CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "legacy": False,
            "model_max_length": 131072,
            "padding_side": "right",
            "tokenizer_class": "LlamaTokenizer",
            "use_default_system_prompt": False,
        },
        "preprocessor_config.json": {
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_processor_type": "Phi3VImageProcessor",
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "num_crops": num_crops,
            "num_img_tokens": tokens_per_crop,
            "processor_class": "Phi3VProcessor",
        },
    }
    for name, value in files.items():
        text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    return {token["content"]: token["id"] for token in content["added_tokens"]}


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Merges after which each word, with and without a space before it, and each of `_JSON_PUNCTUATION` is one token.

    A word is spelled with the merges so far and its pieces are joined from the right, so that a capital
    joins last; the space joins whole words only. Later merges can only apply where earlier ones left off,
    so every word stays whole.
    """
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = _spell(word, merges)
        while len(pieces) > 1:
            merges.append((pieces[-2], pieces[-1]))
            pieces[-2:] = [pieces[-2] + pieces[-1]]
    merges += [(_SPACE, word) for word in words]
    return merges + [(joined[:-1], joined[-1]) for joined in _JSON_PUNCTUATION]


def _spell(word: str, merges: Sequence[tuple[str, str]]) -> list[str]:
    """BPE: the earliest merge that fits is applied first, everywhere, from the left."""
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(merges)))}
    pieces = list(word)
    while len(pieces) > 1:
        rank, place = min((ranks.get(pair, len(merges)), place) for place, pair in enumerate(pairwise(pieces)))
        if rank == len(merges):
            break
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    return pieces


def _flags(name: str) -> dict[str, bool]:
    rstrip = name not in _KEEPS_SPACE
    return {"single_word": False, "lstrip": False, "rstrip": rstrip, "normalized": False, "special": name != "</s>"}


def _post_processor() -> dict[str, Any]:
    def start(type_id: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": "<s>", "type_id": type_id}}

    def sequence(name: str, type_id: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": type_id}}

    return {
        "type": "TemplateProcessing",
        "single": [start(0), sequence("A", 0)],
        "pair": [start(0), sequence("A", 0), start(1), sequence("B", 1)],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
