"""Stop strings end an answer at the token after which the whole answer, decoded, first holds one.

Held against decoding the whole answer after every token, with real tokenizers of every kind of decoder.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ray_job.engine.interface import Vocabulary
from ray_job.engine.sequence import Sequence
from ray_job.engine.stops import StopSearch
from ray_job.rows import FinishReason, Sample
from ray_job.spec import GenerationParams
from tests.engine.decodings import LETTERS, NAMES, SCRIPTS, WITH_BYTES, Decoding

BROKEN = [0x80, 0xFF, 0xED, 0x95, 0x9C, 0x41, 0xF0, 0x9F]  # bytes of no character, and of some if they come in order


def random_ids(decoding: Decoding, rng: random.Random) -> list[int]:
    """An answer of several stretches: any tokens, characters as bytes, broken bytes, text, one token repeated."""
    num_ids, ids = decoding.tokenizer.get_vocab_size(), list[int]()
    for _ in range(rng.randint(1, 5)):
        count = rng.choice([1, 3, 10, 40, 100])
        kind = rng.choice(["any", "characters", "broken", "text", "special", "one"])
        if kind == "any":
            ids += [rng.randrange(num_ids + 5) for _ in range(count)]  # a few that the tokenizer lacks
        elif kind == "characters" and decoding.has_bytes:
            ids += decoding.byte_ids("".join(rng.choice(SCRIPTS) for _ in range(count)).encode())
        elif kind == "broken" and decoding.has_bytes:
            ids += decoding.byte_ids(bytes(rng.choice(BROKEN) for _ in range(count)))
        elif kind == "text":
            text = "".join(rng.choice(rng.choice([LETTERS, SCRIPTS])) for _ in range(count))
            ids += decoding.tokenizer.encode(text, add_special_tokens=False).ids
        elif kind == "special":
            ids += [decoding.tokenizer.token_to_id("<|end|>")] * count
        else:
            ids += [rng.randrange(num_ids)] * count
    return ids or [1]


def random_stops(text: str, rng: random.Random) -> tuple[str, ...]:
    """Pieces of the text, its end more often than not, and strings that may not be in it."""
    stops = []
    for _ in range(rng.randint(1, 3)):
        length = rng.choice([1, 1, 2, 3, 5, 12, 40])
        start = rng.choice([rng.randint(0, len(text)), len(text) - length, len(text) - length])
        other = "".join(rng.choice(LETTERS + SCRIPTS) for _ in range(length))
        stops.append(text[max(start, 0) :][:length] if rng.random() < 0.8 else other)
    return tuple(stop for stop in stops if stop) or ("zz",)


def check(decoding: Decoding, ids: list[int], stops: tuple[str, ...]) -> None:
    """Feeds an answer and compares with its whole text after every token.

    Characters that are incomplete while the answer goes on are in no stop string.
    """
    params = GenerationParams(max_new_tokens=len(ids), stop=stops)
    sequence = Sequence(Sample(0, [1], (), params), Vocabulary(0, frozenset(), decoding), max_len=10**9)
    for count, token in enumerate(ids, start=1):
        sequence.append(token)
        text = decoding(ids[:count])
        known = text.rstrip("\ufffd") if count < len(ids) else text
        starts = [known.find(stop) for stop in stops if stop in known]
        if starts:
            assert sequence.finish_reason == FinishReason.STOP
            assert sequence.result().text == known[: min(starts)]
            return
        assert sequence.is_finished == (count == len(ids))
    assert sequence.finish_reason == FinishReason.LENGTH
    assert sequence.result().text == decoding(ids)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
@example(seed=0)
def test_an_answer_ends_where_its_whole_text_first_holds_a_stop_string(name: str, seed: int) -> None:
    rng, decoding = random.Random(seed), Decoding(name)
    ids = random_ids(decoding, rng)
    check(decoding, ids, random_stops(decoding(ids), rng))


@pytest.mark.parametrize("name", WITH_BYTES)
@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ("🎉🎉🎉🎉", "🎉🎉🎉🎉"),
        ("좋은하루되세요", "요"),
        ("😀😁😂🤣😃🛑", "🛑"),
        ("안녕하세요반갑습니다끝", "끝"),
        ("สวัสดีครับ" * 20 + "จบ", "จบ"),
        ("ok 🛑", "🛑"),
        ("йцукен" * 30 + "ъ", "ъ"),
        ("👩‍👧👩‍👧👩‍👦", "👦"),
        ("漢字カナ" * 40 + "。", "ナ。"),
    ],
)
def test_characters_made_of_byte_tokens_stop_an_answer_at_their_last_byte(name: str, text: str, stop: str) -> None:
    decoding = Decoding(name)
    ids = decoding.byte_ids(text.encode())
    sequence = Sequence(
        Sample(0, [1], (), GenerationParams(max_new_tokens=10_000, stop=(stop,))),
        Vocabulary(0, frozenset(), decoding),
        max_len=10**6,
    )
    for token in [*ids, *decoding.byte_ids(b"more")]:
        sequence.append(token)
        if sequence.is_finished:
            break
    before = text[: text.index(stop)]
    assert sequence.result().text == before
    assert sequence.result().completion_tokens == len((before + stop).encode())


@pytest.mark.parametrize("name", WITH_BYTES)
def test_an_incomplete_character_is_no_stop_string_and_a_broken_one_is(name: str) -> None:
    decoding = Decoding(name)
    stop = ("\ufffd",)
    whole = decoding.byte_ids("끝 a".encode())
    check(decoding, whole, stop)
    params = GenerationParams(max_new_tokens=len(whole), stop=stop)
    sequence = Sequence(Sample(0, [1], (), params), Vocabulary(0, frozenset(), decoding), max_len=10**9)
    for token in whole:
        sequence.append(token)
    assert (sequence.result().text, sequence.finish_reason) == ("끝 a", FinishReason.LENGTH)
    check(decoding, decoding.byte_ids(b"a\xff"), stop)  # it never became a character: cut when the answer ends


def long_answers(decoding: Decoding) -> dict[str, list[int]]:
    """Answers of a thousand tokens, some such that nothing of them can be told before much else."""
    rng = random.Random(1)
    num_ids = decoding.tokenizer.get_vocab_size()
    special = decoding.tokenizer.token_to_id("<|end|>")
    found = {
        "any": [rng.randrange(num_ids) for _ in range(1200)],
        "one": [7] * 1200,
        "no text": [special] * 1200,
    }
    if decoding.has_bytes:
        found |= {
            "characters": decoding.byte_ids("".join(rng.choice(SCRIPTS) for _ in range(400)).encode()),
            "emoji": decoding.byte_ids("😀".encode() * 300),
            "2 and 3 bytes": decoding.byte_ids("é한".encode() * 240),
            "broken": decoding.byte_ids(bytes(rng.choice(BROKEN) for _ in range(1200))),
            "broken at first": decoding.byte_ids(b"\x80" + "한".encode() * 400),
        }
        found["characters between special tokens"] = [i for id_ in found["emoji"] for i in (id_, special, special)]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_token_costs_the_same_anywhere_in_an_answer(name: str) -> None:
    """Ids decoded for each token: set by the stop string's length, not by the answer's."""
    decoding = Decoding(name)
    for kind, ids in long_answers(decoding).items():
        for stop, most in (("한Q", 250), ("Q" * 12, 500)):
            search = StopSearch((stop,), decoding)
            for first in range(0, len(ids) - 300, 300):
                decoding.num_ids = 0
                chunk = ids[first : first + 300]
                assert [token for token in chunk if search.ends_with(token)] == [], kind
                assert decoding.num_ids <= most * len(chunk), (kind, first)
