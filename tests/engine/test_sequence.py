"""Where an answer ends: stop strings are found at the same token whether or not the whole text is made each time."""

from __future__ import annotations

from collections.abc import Sequence as Ids

from hypothesis import given
from hypothesis import strategies as st

from ray_job.engine.interface import Vocabulary
from ray_job.engine.sequence import Sequence
from ray_job.rows import Sample
from ray_job.spec import GenerationParams

# Tokens without text, of one character, of several, and a leading space that a text's beginning drops.
PIECES = ["", "", "a", "b", "ab", " a", "bab", "xyz"]


def detokenize(ids: Ids[int]) -> str:
    return "".join(PIECES[i] for i in ids).removeprefix(" ")


@given(
    st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=120),
    st.lists(st.text("abxyz ", min_size=1, max_size=6), min_size=1, max_size=3),
)
def test_a_stop_string_ends_the_answer_where_its_text_first_holds_it(ids: list[int], stops: list[str]) -> None:
    vocabulary = Vocabulary(pad_id=0, stop_ids=frozenset(), detokenize=detokenize)
    params = GenerationParams(max_new_tokens=1000, stop=tuple(stops))
    sequence = Sequence(Sample(0, [1], (), params), vocabulary, max_len=10_000)
    for count, token in enumerate(ids, start=1):
        sequence.append(token)
        text = detokenize(ids[:count])
        found = [text.find(stop) for stop in stops if stop in text]
        assert sequence.is_finished == bool(found)
        if found:
            assert sequence.result().text == text[: min(found)]
            return
