"""The model card that training writes beside the weights, with the numbers it has just measured."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ray_job.demo.training.architecture import Architecture
from ray_job.demo.training.choosing import ARCHITECTURES
from ray_job.demo.training.evaluate import Score, overall


@dataclass(frozen=True)
class Effort:
    """What a training took, in all its processes together."""

    num_processes: int
    first_step: int  # above 0 if it continued from a checkpoint
    wall_s: float
    cpu_s: float


def model_card(
    learned: Architecture,
    recipe: Mapping[str, object],
    model: nn.Module,
    scores: Mapping[str, Score],
    num_examples: int,
    effort: Effort,
) -> str:
    """README.md of the model folder; the scores are of `num_examples` examples of the "eval" split."""
    command = f"--out DIR --seed {recipe['seed']} --processes {effort.num_processes}"
    if learned.name != ARCHITECTURES[0]:
        command = f"--architecture {learned.name} {command}"
    settings = ", ".join(f"{name} {value}" for name, value in recipe.items())
    continued = f"What followed step {effort.first_step}, where it continued from a checkpoint,"
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return learned.card.format(num_parameters=f"{num_parameters:,}") + _CARD.format(
        command=command,
        settings=textwrap.fill(f"Recipe: {settings}.", 115),
        run=continued if effort.first_step else f"The whole run, from {learned.start} to the saved ones,",
        wall_min=f"{effort.wall_s / 60:.0f}",
        cpu_min=f"{effort.cpu_s / 60:.0f}",
        num_cores=os.cpu_count(),
        accuracy=f"{overall(scores):.4f}",
        total=sum(score.total for score in scores.values()),
        num_examples=num_examples,
        table="\n".join(f"| {kind} | {s.right} | {s.total} | {s.right / s.total:.3f} |" for kind, s in scores.items()),
    )


_CARD = """
## Training

    python -m ray_job.demo.training.train {command}

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
