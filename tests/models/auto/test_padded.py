"""Static batches of library models: every row's answer is the one that the library's `generate` gives to it alone."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import pytest

from ray_job.engine.interface import Vocabulary, run
from ray_job.engine.static import StaticEngine
from ray_job.models.auto.padded import PaddedAuto
from ray_job.models.auto.padded_gate import why_alone, why_not_padded
from ray_job.rows import Sample
from tests.models.auto.chat_tokenizers import PAD_ID
from tests.models.auto.families import FAMILIES
from tests.models.auto.library_rows import Family, family

NEVER_STOPS = Vocabulary(PAD_ID, frozenset(), lambda ids: " ".join(map(str, ids)))


def padded_of(its: Family) -> PaddedAuto:
    return PaddedAuto(copy.deepcopy(its.model), its.normalization, max_len=2048)


def answers(padded: PaddedAuto, samples: Sequence[Sample], max_batch_rows: int) -> dict[int, list[int]]:
    engine = StaticEngine(padded, NEVER_STOPS, max_batch_rows=max_batch_rows)
    results = list(run(engine, samples))
    assert sorted(result.key for result in results) == sorted(sample.key for sample in samples)
    assert [result.error.message for result in results if result.error is not None] == []
    return {result.key: list(result.token_ids) for result in results}


@pytest.mark.parametrize("name", FAMILIES)
def test_batches_and_single_rows_answer_as_the_library_does(name: str) -> None:
    its = family(name)
    assert len({tuple(tokens) for tokens in its.answers.values()}) > 5
    padded, samples = padded_of(its), list(its.samples)
    assert answers(padded, samples, max_batch_rows=1) == its.answers
    assert answers(padded, samples, max_batch_rows=10) == its.answers
    random.Random(0).shuffle(samples)
    assert answers(padded, samples, max_batch_rows=3) == its.answers


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_is_refused_or_run_a_row_at_a_time(name: str) -> None:
    its = family(name)
    assert why_not_padded(its.model) is None
    assert why_alone(its.model, padded_of(its)) is None
