"""The model card that training writes beside the weights, with the numbers it has just measured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ray_job.demo.evaluate import Score, overall


@dataclass(frozen=True)
class Effort:
    """What a training took, in all its processes together."""

    num_processes: int
    first_step: int  # above 0 if it continued from a checkpoint
    wall_s: float
    cpu_s: float


def model_card(recipe: Mapping[str, object], model: nn.Module, scores: Mapping[str, Score], effort: Effort) -> str:
    """README.md of the model folder."""
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    table = "\n".join(f"| {kind} | {s.right} | {s.total} | {s.right / s.total:.3f} |" for kind, s in scores.items())
    settings = ", ".join(f"{name} {value}" for name, value in recipe.items())
    return _CARD.format(
        num_parameters=f"{num_parameters:,}",
        settings=settings,
        seed=recipe["seed"],
        num_cores=os.cpu_count(),
        num_processes=effort.num_processes,
        part=f"The part from step {effort.first_step} on, which continued from a checkpoint,"
        if effort.first_step
        else "It",
        wall_min=f"{effort.wall_s / 60:.0f}",
        cpu_min=f"{effort.cpu_s / 60:.0f}",
        accuracy=f"{overall(scores):.4f}",
        total=sum(score.total for score in scores.values()),
        table=table,
    )


_CARD = """\
# The demo's model

The Phi-3-Vision architecture in small ({num_parameters} parameters, bfloat16), trained from random weights on
drawn pictures. It answers short questions about coloured shapes, printed numbers and two pictures, so that
`python -m ray_job demo` and the tests have a real model without a download. It contains nothing of
Microsoft's weights or tokenizer.

## Training

    python -m ray_job.demo.train --out DIR --seed {seed} --processes {num_processes}

{settings}. {part} took {wall_min} minutes, and {cpu_min} minutes of CPU time, on a machine of {num_cores} cores.
Pictures and questions are drawn from seeds of the "train" split (`ray_job/demo/questions.py`).

## Accuracy

Exact answers, greedy, float32 arithmetic on the saved bfloat16 weights, each question asked alone, 500 examples
of the "eval" split, whose seeds are never trained on: **{accuracy}** of {total} questions.

| kind | right | questions | share |
|---|---|---|---|
{table}

Measure again with `python -m ray_job.demo.evaluate DIR --examples 500`.

## Limits

It knows the demo's phrasings, six colours, five shapes, one font, numbers of two or three digits, and at most two
pictures in a prompt. It cannot chat, and a photograph means nothing to it.
"""
