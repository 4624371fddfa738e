"""The next token of every answer that a step asks the model about: its form's mask, then the sampler.

Shapes: S answers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

from torch import Tensor

from ray_job.engine.masks import StepMasks
from ray_job.engine.sampler import next_tokens
from ray_job.engine.sequence import Sequence


def choose(logits_SV: Tensor, answers: Rows[Sequence], masks: StepMasks | None) -> list[int]:
    """A token for each answer, which has not taken it yet.

    Args:
        logits_SV: float32, of what comes next; masks change it in place.
        answers: none of them finished.
        masks: of these answers; None where none has a form.

    Raises:
        RuntimeError: the form of one is broken.
    """
    if masks is not None:  # before the repetition penalty, which leaves −∞ as it is
        masks.apply(logits_SV)
    return next_tokens(
        logits_SV,
        [answer.sample.params for answer in answers],
        [answer.num_generated for answer in answers],
        [answer.text_ids if answer.needs_seen_ids else () for answer in answers],
    )
