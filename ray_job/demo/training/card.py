"""The model card that training writes beside the weights, with the numbers it has just measured."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ray_job.demo.training.evaluate import Score, overall


@dataclass(frozen=True)
class Effort:
    """What a training took, in all its processes together."""

    num_processes: int
    first_step: int  # above 0 if it continued from a checkpoint
    wall_s: float
    cpu_s: float


def model_card(
    recipe: Mapping[str, object],
    model: nn.Module,
    scores: Mapping[str, Score],
    num_examples: int,
    effort: Effort,
) -> str:
    """README.md of the model folder; the scores are of `num_examples` examples of the "eval" split."""
    settings = ", ".join(f"{name} {value}" for name, value in recipe.items())
    continued = f"What followed step {effort.first_step}, where it continued from a checkpoint,"
    return _CARD.format(
        num_parameters=f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        settings=textwrap.fill(f"Recipe: {settings}.", 115),
        seed=recipe["seed"],
        num_processes=effort.num_processes,
        run=continued if effort.first_step else "The whole run, from random weights to the saved ones,",
        wall_min=f"{effort.wall_s / 60:.0f}",
        cpu_min=f"{effort.cpu_s / 60:.0f}",
        num_cores=os.cpu_count(),
        accuracy=f"{overall(scores):.4f}",
        total=sum(score.total for score in scores.values()),
        num_examples=num_examples,
        table="\n".join(f"| {kind} | {s.right} | {s.total} | {s.right / s.total:.3f} |" for kind, s in scores.items()),
    )


_CARD = """\
# The demo's model

The Phi-3-Vision architecture in small ({num_parameters} parameters, bfloat16), trained from random weights on
drawn pictures. It answers short questions about coloured shapes, printed numbers and two pictures, so that
`python -m ray_job demo` and the tests have a real model without a download. It contains nothing of
Microsoft's weights or tokenizer.

## Training

    python -m ray_job.demo.training.train --out DIR --seed {seed} --processes {num_processes}

{run}
took {wall_min} minutes on {num_cores} cores, and {cpu_min} minutes of CPU time in all its processes together.
{settings}

Pictures and questions are drawn from seeds of the "train" split (`ray_job/demo/questions.py`).

## Accuracy

Exact answers, greedy, float32 arithmetic on the saved bfloat16 weights, each question asked alone: **{accuracy}** of
the {total} questions of {num_examples} examples of the "eval" split, whose seeds are never trained on.

| kind | right | questions | share |
|---|---|---|---|
{table}

Measure again with `python -m ray_job.demo.training.evaluate DIR --examples {num_examples}`.

## Limits

It knows the demo's phrasings, six colours, five shapes, one font, numbers of two or three digits, and at most two
pictures in a prompt. It cannot chat, and a photograph means nothing to it.
"""
