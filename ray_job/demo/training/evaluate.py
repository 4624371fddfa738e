"""Exact-match accuracy of a model on unseen examples.

    python -m ray_job.demo.training.evaluate MODEL_DIR --examples N

Each question is asked alone, as a single-turn chat, and answered greedily, as in a job. It uses the model
and the processor directly and no engine, so that it can tell a bad model from a bad engine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_job.demo.questions import KINDS, SPLITS, Example, make_split
from ray_job.demo.training.batches import prompt_parts
from ray_job.models.phi3_vision.cache import KVCache
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor
from ray_job.models.phi3_vision.weights import load

_MAX_NEW_TOKENS = 8  # the longest answer takes seven, `<|end|>` included
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


def accuracy(
    model: Phi3VisionModel,
    processor: Phi3VisionProcessor,
    examples: Iterable[Example],
    mistakes: list[Mistake] | None = None,
) -> dict[str, Score]:
    """Scores by kind, kinds without a question left out. Wrong answers are appended to `mistakes`."""
    right, total = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    pending = list(examples)
    for first in range(0, len(pending), _EXAMPLES_AT_ONCE):
        some = pending[first : first + _EXAMPLES_AT_ONCE]
        for example, found in zip(some, answer(model, processor, some), strict=True):
            for qa, text in zip(example.questions, found, strict=True):
                total[qa.kind] += 1
                right[qa.kind] += text == qa.answer
                if mistakes is not None and text != qa.answer:
                    mistakes.append(Mistake(example.seed, qa.question, qa.answer, text))
    return {kind: Score(right[kind], total[kind]) for kind in KINDS if total[kind]}


@torch.inference_mode()
def answer(model: Phi3VisionModel, processor: Phi3VisionProcessor, examples: Sequence[Example]) -> list[list[str]]:
    """The model's answer to every question of every example, in order."""
    rows: list[Tensor] = []
    for example in examples:
        features = model.encode_pictures([torch.from_numpy(processor.picture(p)) for p in example.pictures])
        tokens = [len(feature_TD) for feature_TD in features]
        for qa in example.questions:
            ids = processor.encode(prompt_parts(processor, qa.question, len(tokens)), tokens)
            rows.append(model.embed_row(torch.tensor(ids), features))
    texts = iter([processor.decode(ids) for ids in _greedy(model, rows, processor.stop_ids)])
    return [[next(texts) for _ in example.questions] for example in examples]


def overall(scores: Mapping[str, Score]) -> float:
    """Share of right answers over all kinds."""
    return sum(score.right for score in scores.values()) / max(1, sum(score.total for score in scores.values()))


def format_accuracy(scores: Mapping[str, Score]) -> str:
    """One line: the whole, then each kind."""
    kinds = " ".join(f"{kind} {score.right / score.total:.3f}" for kind, score in scores.items())
    return f"accuracy {overall(scores):.4f} of {sum(s.total for s in scores.values())}: {kinds}"


def _greedy(model: Phi3VisionModel, rows_LD: Sequence[Tensor], stop_ids: Sequence[int]) -> list[list[int]]:
    """Generated ids of each embedded prompt, without the stop token. Rows are padded on the left."""
    width = max(len(row_LD) for row_LD in rows_LD)
    pads_B1 = torch.tensor([[width - len(row_LD)] for row_LD in rows_LD])
    embeds_BLD = torch.stack([F.pad(row_LD, (0, 0, width - len(row_LD), 0)) for row_LD in rows_LD])
    places_BL = torch.arange(width + _MAX_NEW_TOKENS) - pads_B1
    is_long_B = torch.zeros(len(rows_LD), dtype=torch.bool)  # prompts here are far below 4096 tokens
    cache = KVCache(capacity=width + _MAX_NEW_TOKENS)
    generated: list[Tensor] = []
    start, end = 0, width
    for _ in range(_MAX_NEW_TOKENS):
        logits_B1V = model(
            embeds_BLD,
            position_ids_BL=places_BL[:, start:end].clamp_min(0),
            attention_mask_BL=places_BL[:, :end] >= 0,
            is_long_B=is_long_B,
            cache=cache,
            logits_to_keep=1,
        )
        generated.append(logits_B1V[:, 0].argmax(-1))
        embeds_BLD = model.model.embed_tokens(generated[-1])[:, None]
        start, end = end, end + 1
    return [_until(ids, stop_ids) for ids in torch.stack(generated, dim=1).tolist()]


def _until(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    return ids[: next((place for place, token_id in enumerate(ids) if token_id in stop_ids), len(ids))]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ray_job.demo.training.evaluate", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--split", choices=sorted(SPLITS), default="eval")
    parser.add_argument("--seed", type=int, default=0, help="another run of the split: other pictures")
    arguments = parser.parse_args(argv)
    started_s = time.monotonic()
    model = load(arguments.model, dtype=torch.float32)
    processor = Phi3VisionProcessor.from_pretrained(arguments.model)
    mistakes: list[Mistake] = []
    scores = accuracy(model, processor, make_split(arguments.split, arguments.examples, arguments.seed), mistakes)
    for mistake in mistakes:
        print(f"seed {mistake.seed}: {mistake.question} {mistake.answer!r}, in truth {mistake.truth!r}")
    for kind, score in scores.items():
        print(f"{kind:10} {score.right:6} of {score.total:6}  {score.right / score.total:.4f}")
    total = sum(score.total for score in scores.values())
    print(f"{overall(scores):.4f} of {total} questions right, in {time.monotonic() - started_s:.0f} s")


if __name__ == "__main__":
    main()
