"""Both engines end answers of byte tokens at their stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ray_job.engine import choosing
from ray_job.engine.continuous import ContinuousEngine
from ray_job.engine.interface import Engine, Vocabulary, run
from ray_job.engine.static import StaticEngine
from ray_job.models.phi3_vision.packed import PackedPhi3Vision
from ray_job.models.phi3_vision.padded import PaddedPhi3Vision
from ray_job.rows import FinishReason, Sample
from ray_job.spec import GenerationParams
from tests.engine.decodings import WITH_BYTES, Decoding
from tests.engine.tiny import VOCAB, tiny_model

# What each row answers, the stop string, and the text before it; None: it is not in the answer.
ANSWERS = [
    ("좋은하루되세요끝 하루", "끝", "좋은하루되세요"),
    ("하루하루하루하루하루하루하루하루하루하루끝하", "루끝", "하루하루하루하루하루하루하루하루하루하"),
    ("🛑", "🛑", ""),
    ("좋은🛑은", "🛑은", "좋은"),
    ("하루 하루", "되", None),
]


def engine_of(kind: str, vocabulary: Vocabulary) -> Engine:
    if kind == "static":
        return StaticEngine(PaddedPhi3Vision(tiny_model()), vocabulary)
    return ContinuousEngine(PackedPhi3Vision(tiny_model()), vocabulary, max_tokens=2000, max_slots=3)


@pytest.mark.parametrize("kind", ["static", "continuous"])
@pytest.mark.parametrize("name", WITH_BYTES)
def test_byte_tokens_that_make_a_stop_string_end_the_answer(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's tokens stand for bytes; a row's seed says which answer is forced on it, a byte at a time."""
    decoding = Decoding(name)
    used = sorted({byte for text, _, _ in ANSWERS for byte in text.encode()})
    assert len(used) <= VOCAB
    byte_ids = decoding.byte_ids(bytes(used))
    scripts = [[used.index(byte) for byte in text.encode()] for text, _, _ in ANSWERS]

    def forced(_logits_BV: Any, params: Sequence[GenerationParams], counts: Sequence[int], _seen: Any) -> list[int]:
        return [
            scripts[each.seed][min(count, len(scripts[each.seed]) - 1)]  # a static batch runs on after a row's end
            for each, count in zip(params, counts, strict=True)
        ]

    monkeypatch.setattr(choosing, "next_tokens", forced)
    rows = [
        Sample(
            key,
            [1, 5 + key],
            (),
            GenerationParams(max_new_tokens=len(scripts[key]), temperature=1.0, seed=key, stop=("nowhere", stop)),
        )
        for key, (_, stop, _) in enumerate(ANSWERS)
    ]
    vocabulary = Vocabulary(0, frozenset(), lambda ids: decoding([byte_ids[token] for token in ids]))
    results = {result.key: result for result in run(engine_of(kind, vocabulary), rows)}
    for key, (text, stop, before) in enumerate(ANSWERS):
        if before is None:
            expected = (text, len(text.encode()), FinishReason.LENGTH)
        else:
            expected = (before, len((before + stop).encode()), FinishReason.STOP)
        assert (results[key].text, results[key].completion_tokens, results[key].finish_reason) == expected
