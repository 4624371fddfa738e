"""The weights in the package: small, complete, right about unseen pictures, and lost when the crops are shuffled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ray_job
from ray_job.demo.questions import KINDS, make_example, make_split, split_seed
from ray_job.demo.training.evaluate import accuracy, overall
from ray_job.demo.training.phi3_vision import answerer
from ray_job.demo.training.tokenizer import build_tokenizer
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor
from ray_job.models.phi3_vision.weights import load

FOLDER = Path(ray_job.__file__).parent / "demo" / "model"


@pytest.fixture(scope="module")
def model() -> Phi3VisionModel:
    return load(FOLDER, dtype=torch.float32)


@pytest.fixture(scope="module")
def processor() -> Phi3VisionProcessor:
    return Phi3VisionProcessor.from_pretrained(FOLDER)


def test_it_is_at_most_six_megabytes() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 6_000_000


def test_its_tokenizer_is_the_one_the_questions_make() -> None:
    assert json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8")) == build_tokenizer()


def test_it_answers_unseen_questions(model: Phi3VisionModel, processor: Phi3VisionProcessor) -> None:
    scores = accuracy(answerer(model, processor), make_split("test", 200))
    assert overall(scores) >= 0.95, scores
    assert scores.keys() == set(KINDS)
    assert all(score.right >= 0.9 * score.total for score in scores.values()), scores


def test_wrong_crop_order_shows_in_its_answers(
    model: Phi3VisionModel, processor: Phi3VisionProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [make_example(split_seed("test", index, seed=1), theme="places") for index in range(20)]
    assert overall(accuracy(answerer(model, processor), examples)) >= 0.95
    embedding = model.model.vision_embed_tokens
    right = embedding.forward

    def reversed_crops(crops_N3CC: Tensor, *arguments: object) -> list[Tensor]:
        shuffled = torch.cat([crops_N3CC[:1], crops_N3CC[1:].flip(0)])
        encode: Callable[..., list[Tensor]] = right
        return encode(shuffled, *arguments)

    monkeypatch.setattr(embedding, "forward", reversed_crops)
    assert overall(accuracy(answerer(model, processor), examples)) < 0.8
