"""Batches of real rows answer as each row alone, token for token, with the trained model and with the golden one."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ray_job
from ray_job.demo.questions import Example, make_example, split_seed
from ray_job.engine.collate import PaddingSide
from ray_job.engine.continuous import ContinuousEngine
from ray_job.engine.interface import Engine, Vocabulary, run
from ray_job.engine.static import StaticEngine
from ray_job.models.phi3_vision import weights
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.packed import PackedPhi3Vision
from ray_job.models.phi3_vision.padded import PaddedPhi3Vision
from ray_job.models.phi3_vision.processor import PIXELS, Phi3VisionProcessor
from ray_job.rows import Picture, Sample
from ray_job.spec import GenerationParams
from tests.engine.tiny import essence

TRAINED = Path(ray_job.__file__).parent / "demo" / "model"
THEMES = ("sum", "shapes", "places", "pictures")  # no picture, one in either orientation, two
ROWS_OF_A_THEME = 4

Answer = tuple[object, ...]


class Bench:
    """A model, rows of every kind for it, and the answer of each row alone."""

    def __init__(self, folder: Path, num_crops: int) -> None:
        self.model: Phi3VisionModel = weights.load(folder, dtype=torch.float32)
        self.processor = Phi3VisionProcessor.from_pretrained(folder, num_crops=num_crops)
        self.vocabulary = Vocabulary(self.processor.pad_id, frozenset(self.processor.stop_ids), self.processor.decode)
        rng = random.Random(0)
        self.samples = [
            self._sample(make_example(split_seed("test", number, seed=7), theme), rng)
            for number in range(ROWS_OF_A_THEME)
            for theme in THEMES
        ]
        self.alone = self.answers(self.static(max_batch_rows=1), range(len(self.samples)))

    def static(self, max_batch_rows: int, padding_side: PaddingSide = "left") -> Engine:
        model = PaddedPhi3Vision(self.model, padding_side)
        return StaticEngine(model, self.vocabulary, max_batch_rows=max_batch_rows)

    def continuous(self, **options: Any) -> Engine:
        return ContinuousEngine(PackedPhi3Vision(self.model), self.vocabulary, max_tokens=4000, **options)

    def answers(self, engine: Engine, chosen: Sequence[int]) -> list[Answer]:
        """Of the chosen rows, fed in that order; a row may be chosen twice."""
        rows = [
            Sample(key, self.samples[number].input_ids, self.samples[number].pictures, self.samples[number].params)
            for key, number in enumerate(chosen)
        ]
        results = {result.key: essence(result) for result in run(engine, rows)}
        assert sorted(results) == list(range(len(chosen)))
        return [results[key] for key in range(len(chosen))]

    def _sample(self, example: Example, rng: random.Random) -> Sample:
        """A question as it was learned, or after many other words."""
        tags = "".join(f"<|image_{number}|>\n" for number in range(1, len(example.scenes) + 1))
        words = "Look at the shapes. " * rng.choice((0, 0, 1, 12))
        text = f"<|user|>\n{tags}{words}{example.questions[0].question}<|end|>\n<|assistant|>\n"
        encoded = self.processor.process(text, example.pictures)
        pictures = [Picture(pixels.tobytes(), {PIXELS: pixels}) for pixels in encoded.pictures]
        return Sample(0, encoded.input_ids, pictures, GenerationParams(max_new_tokens=rng.choice((1, 5, 9))))


@pytest.fixture(scope="module")
def bench(tiny_folder: Path) -> Any:
    """By name, each made once and only if a test asks for it."""
    return functools.cache(lambda name: Bench(TRAINED, 2) if name == "trained" else Bench(tiny_folder, 4))


CHOSEN = st.lists(st.integers(0, ROWS_OF_A_THEME * len(THEMES) - 1), min_size=2, max_size=8)


@pytest.mark.parametrize("name", ["trained", "golden"])
def test_the_rows_are_of_every_kind(bench: Any, name: str) -> None:
    rows: list[Sample] = bench(name).samples
    assert {len(row.pictures) for row in rows} == {0, 1, 2}
    assert len({len(row.input_ids) for row in rows}) > 8
    assert len({picture.arrays[PIXELS].shape for row in rows for picture in row.pictures}) > 2
    assert len({answer[0] for answer in bench(name).alone}) > 8


@pytest.mark.parametrize("name", ["trained", "golden"])
@settings(max_examples=5, deadline=None)
@given(chosen=CHOSEN, max_batch_rows=st.integers(2, 6), padding_side=st.sampled_from(["left", "right"]))
def test_static_batches(
    bench: Any, name: str, chosen: list[int], max_batch_rows: int, padding_side: PaddingSide
) -> None:
    its: Bench = bench(name)
    engine = its.static(max_batch_rows, padding_side)
    assert its.answers(engine, chosen) == [its.alone[number] for number in chosen]


@pytest.mark.parametrize("name", ["trained", "golden"])
@settings(max_examples=6, deadline=None)
@given(
    chosen=CHOSEN,
    max_slots=st.integers(1, 6),
    step_tokens=st.sampled_from([16, 100, 1000]),
    max_crops=st.sampled_from([1, 8]),
    answer_duplicates=st.booleans(),
)
def test_continuous_batches(bench: Any, name: str, chosen: list[int], **options: Any) -> None:
    its: Bench = bench(name)
    assert its.answers(its.continuous(**options), chosen) == [its.alone[number] for number in chosen]
