"""Small real tokenizers, one for each way in which a decoder joins tokens."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ray_job.demo.training.tokenizer import build_tokenizer
from tests.conftest import GOLDEN

LETTERS = "abcdxyz .,'\n"
SCRIPTS = "éñйцукеאבสวัสดีครับ안녕하세요끝漢字カナ😀🛑🎉👩‍👧\u0301\ufffd"
_CORPUS = [
    "yellow square. a b, c's don't (x) \n the other one",
    "안녕하세요 반갑습니다 สวัสดีครับ йцукен 😀🛑🎉 漢字",
    "abcd xyz " * 5,
]
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = "<|end|>"


def _with_special(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([SPECIAL])
    return tokenizer


def demo() -> Tokenizer:
    """As the shipped model's: byte fallback, joined, without the text's first space."""
    return Tokenizer.from_str(json.dumps(build_tokenizer()))


def golden() -> Tokenizer:
    """Of the golden model: the official layout."""
    return Tokenizer.from_file(str(GOLDEN / "tiny-mha" / "tokenizer.json"))


def _byte_fallback(decoder: decoders.Decoder) -> Tokenizer:
    pieces = ["<unk>", *BYTE_TOKENS, "▁", *LETTERS.replace(" ", ""), "▁the", "▁a", "ab", "안", "é", "</w>"]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoder
    return _with_special(tokenizer)


def unfused_byte_fallback() -> Tokenizer:
    """Byte fallback between other tokens, no `Fuse`."""
    return _byte_fallback(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]))


def cleaned_byte_fallback() -> Tokenizer:
    """Spaces before punctuation go from the joined text."""
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    cleanup = [decoders.Replace(Regex(r" \."), "."), decoders.Replace(" ,", ","), decoders.Strip(" ", 1, 0)]
    return _byte_fallback(decoders.Sequence([*steps, *cleanup]))


def byte_level() -> Tokenizer:
    """Tokens of several bytes that begin and end anywhere in a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return _with_special(tokenizer)


def word_piece() -> Tokenizer:
    """Words and their parts, spaces put between and taken away before punctuation."""
    pieces = ["[UNK]", *LETTERS.replace(" ", ""), *(f"##{letter}" for letter in LETTERS if letter.isalpha())]
    pieces += ["the", "other", "##er", "안녕", "##하", "n't", "'s", "do", "not", "끝", "(", ")", "?", "!"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _with_special(tokenizer)


def word_ends() -> Tokenizer:
    """Tokens that end a word stand for the space after it, where a token follows."""
    pieces = ["<unk>", *LETTERS.replace(" ", ""), *(f"{letter}</w>" for letter in "abcdxyz"), "the</w>", "끝</w>", "안"]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", end_of_word_suffix="</w>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    return _with_special(tokenizer)


def metaspace() -> Tokenizer:
    """A unigram model's pieces."""
    pieces = [("<unk>", 0.0), *((letter, -2.0) for letter in LETTERS.replace(" ", "▁")), ("▁the", -1.0), ("안녕", -1.0)]
    pieces += [("끝", -1.0), ("▁끝", -1.0), ("▁▁", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _with_special(tokenizer)


BUILDERS = (
    demo,
    golden,
    unfused_byte_fallback,
    cleaned_byte_fallback,
    byte_level,
    word_piece,
    word_ends,
    metaspace,
)
NAMES = tuple(builder.__name__ for builder in BUILDERS)


class Decoding:
    """A tokenizer's text of ids as a processor gives it, and how many ids it was asked for."""

    def __init__(self, name: str) -> None:
        self.tokenizer = _built(name)
        self.num_ids = 0

    def __call__(self, ids: Sequence[int]) -> str:
        self.num_ids += len(ids)
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def byte_ids(self, data: bytes) -> list[int]:
        """Tokens of these bytes, one each; of a tokenizer that has them."""
        vocabulary = self.tokenizer.get_vocab()
        names = BYTE_TOKENS if BYTE_TOKENS[0] in vocabulary else _byte_level_names()
        return [vocabulary[names[byte]] for byte in data]

    @property
    def has_bytes(self) -> bool:
        vocabulary = self.tokenizer.get_vocab()
        return BYTE_TOKENS[0] in vocabulary or all(name in vocabulary for name in _byte_level_names())


@functools.cache
def _built(name: str) -> Tokenizer:
    return BUILDERS[NAMES.index(name)]()


@functools.cache
def _byte_level_names() -> list[str]:
    """The character that stands for each byte in ByteLevel vocabularies."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    names = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [names[byte] for byte in range(256)]


WITH_BYTES = tuple(name for name in NAMES if Decoding(name).has_bytes)
