"""Masks become −∞ exactly where a token is not allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from ray_job.engine.masks import Masks
from ray_job.engine.sampler import next_tokens
from ray_job.engine.sequence import Sequence as Answer
from ray_job.engine.stats import Meter
from ray_job.rows import Sample
from ray_job.spec import GenerationParams
from tests.engine.automata import SHAPED, Automaton, line

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Given:
    """Forms whose masks are these, one after the other; their matchers do not matter."""

    def __init__(self, allowed_BV: np.ndarray[Any, Any]) -> None:
        self._allowed_BV = allowed_BV
        self.num_words = -(-allowed_BV.shape[1] // 32)

    def matcher(self, form: object, max_tokens: int) -> Any:
        raise NotImplementedError

    def fill_masks(self, matchers: Sequence[Any], masks_BW: np.ndarray[Any, Any]) -> None:
        padding = self.num_words * 32 - self._allowed_BV.shape[1]
        bits = np.pad(self._allowed_BV, ((0, 0), (0, padding)))
        masks_BW[:] = np.packbits(bits, axis=1, bitorder="little").view("<i4")


def answers(has_form: Sequence[bool]) -> list[Answer]:
    form = Automaton([{5: 1, 6: 1}, {}], [1]).form
    found = []
    for shaped in has_form:
        params = GenerationParams(structured_outputs=form if shaped else None)
        found.append(Answer(Sample(0, [1], (), params), SHAPED, 100))
        found[-1].begin()
    return found


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])])
@pytest.mark.parametrize("has_form", [[True, True], [True, False, True, False], [False, True]])
@pytest.mark.parametrize(("num_ids", "vocab_size"), [(64, 64), (70, 70), (70, 64), (40, 100), (1000, 1000)])
def test_only_allowed_tokens_keep_their_logits(
    device: str, has_form: list[bool], num_ids: int, vocab_size: int
) -> None:
    rng = np.random.default_rng(0)
    allowed_BV = rng.random((sum(has_form), num_ids)) < rng.choice([0.05, 0.5, 0.95], (sum(has_form), 1))
    allowed_BV[:, [0, 31, 32]] = True
    logits_SV = torch.randn(len(has_form), vocab_size, generator=torch.Generator().manual_seed(0)).to(device)
    logits_SV[:, 5] = -0.0
    before_SV = logits_SV.cpu()
    meter = Meter()
    masks = Masks(Given(allowed_BV), meter).start(answers(has_form))
    assert masks is not None
    masks.apply(logits_SV)
    expected_SV = before_SV.clone()
    for row, allowed_V in zip(np.flatnonzero(has_form), allowed_BV, strict=True):
        for token in range(vocab_size):
            if token >= num_ids or not allowed_V[token]:
                expected_SV[row, token] = -torch.inf
    assert torch.equal(logits_SV.cpu().view(torch.int32), expected_SV.view(torch.int32)), "to the bit"
    stats = meter.stats()
    assert stats.mask_s > 0
    assert stats.mask_wait_s > 0


def test_steps_without_a_form_have_no_masks() -> None:
    assert Masks(None, Meter()).start(answers([False, False])) is None


def test_a_penalty_changes_nothing_about_a_mask() -> None:
    """Masks are applied before the penalty; after it would be the same, as the penalised −∞ is −∞."""
    logits_SV = torch.tensor([[3.0, -torch.inf, 2.9, -torch.inf]])
    for penalty, expected in ((1.0, 0), (2.0, 2), (0.5, 0)):
        params = [GenerationParams(repetition_penalty=penalty)]
        assert next_tokens(logits_SV, params, [0], [[0, 1]]) == [expected]
    sampled = [GenerationParams(repetition_penalty=2.0, temperature=50.0, seed=seed) for seed in range(200)]
    found = next_tokens(logits_SV.expand(200, 4), sampled, [0] * 200, [[0, 1]] * 200)
    assert set(found) == {0, 2}


def test_an_answer_that_is_complete_at_once_is_finished() -> None:
    params = GenerationParams(structured_outputs=line([]).form)
    answer = Answer(Sample(0, [1], (), params), SHAPED, 100)
    answer.begin()
    assert answer.is_finished
    assert answer.result().token_ids == ()
