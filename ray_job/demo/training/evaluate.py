"""Exact-match accuracy of a model on unseen examples.

    python -m ray_job.demo.training.evaluate MODEL_DIR --examples N

Each question is asked alone, as a single-turn chat, and answered greedily, as in a job. It uses model and
processor directly, or the library's own `generate`, and no engine, so that it can tell a bad model from a bad engine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_job.demo.questions import KINDS, SPLITS, Example, make_split
from ray_job.demo.training.architecture import Answer
from ray_job.demo.training.choosing import architecture_of

_EXAMPLES_AT_ONCE = 8


@dataclass(frozen=True)
class Score:
    """Right answers to all questions of one kind."""

    right: int
    total: int


@dataclass(frozen=True)
class Mistake:
    """A question that was answered wrongly; the seed makes its pictures again."""

    seed: int
    question: str
    truth: str
    answer: str


def accuracy(answer: Answer, examples: Iterable[Example], mistakes: list[Mistake] | None = None) -> dict[str, Score]:
    """Scores by kind, kinds without a question left out. Wrong answers are appended to `mistakes`."""
    right, total = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    pending = list(examples)
    for first in range(0, len(pending), _EXAMPLES_AT_ONCE):
        some = pending[first : first + _EXAMPLES_AT_ONCE]
        for example, found in zip(some, answer(some), strict=True):
            for qa, text in zip(example.questions, found, strict=True):
                total[qa.kind] += 1
                right[qa.kind] += text == qa.answer
                if mistakes is not None and text != qa.answer:
                    mistakes.append(Mistake(example.seed, qa.question, qa.answer, text))
    return {kind: Score(right[kind], total[kind]) for kind in KINDS if total[kind]}


def overall(scores: Mapping[str, Score]) -> float:
    """Share of right answers over all kinds."""
    return sum(score.right for score in scores.values()) / max(1, sum(score.total for score in scores.values()))


def format_accuracy(scores: Mapping[str, Score]) -> str:
    """One line: the whole, then each kind."""
    kinds = " ".join(f"{kind} {score.right / score.total:.3f}" for kind, score in scores.items())
    return f"accuracy {overall(scores):.4f} of {sum(s.total for s in scores.values())}: {kinds}"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ray_job.demo.training.evaluate", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--split", choices=sorted(SPLITS), default="eval")
    parser.add_argument("--seed", type=int, default=0, help="another run of the split: other pictures")
    arguments = parser.parse_args(argv)
    started_s = time.monotonic()
    answer = architecture_of(arguments.model).answer(arguments.model)
    mistakes: list[Mistake] = []
    scores = accuracy(answer, make_split(arguments.split, arguments.examples, arguments.seed), mistakes)
    for mistake in mistakes:
        print(f"seed {mistake.seed}: {mistake.question} {mistake.answer!r}, in truth {mistake.truth!r}")
    for kind, score in scores.items():
        print(f"{kind:10} {score.right:6} of {score.total:6}  {score.right / score.total:.4f}")
    total = sum(score.total for score in scores.values())
    print(f"{overall(scores):.4f} of {total} questions right, in {time.monotonic() - started_s:.0f} s")


if __name__ == "__main__":
    main()
