"""Training batches: pictures and all questions about them, packed so that each question is a single turn.

A row is the prefix (prompt start and pictures) once, then every question with its answer. A question sees
the prefix and itself only, and its positions continue where the prefix ends, so its logits are those of the
question asked alone, while pictures and prefix are computed once for all of them.

Shapes: B rows, L tokens of a row; N crops of all pictures; C crop side; P patches.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from ray_job.demo.pictures import encode
from ray_job.demo.questions import Example, make_example, split_seed, training_theme
from ray_job.demo.training.architecture import Preparation, Seen, Size
from ray_job.demo.training.parallel import ALONE, Processes
from ray_job.demo.training.targets import IGNORED


@dataclass
class Batch:
    """`segments_BL` is 0 for the prefix, 1, 2, … for questions, -1 for padding.

    `sizes` has those of the pictures in the rows. Crops beyond theirs are for the tower alone.
    """

    crops_N3CC: Tensor
    sizes: list[Size]
    targets_NP4: Tensor
    ids_BL: Tensor
    positions_BL: Tensor
    segments_BL: Tensor
    labels_BL: Tensor

    @property
    def num_answer_tokens(self) -> int:
        """Tokens that are learned."""
        return int((self.labels_BL != IGNORED).sum())

    def attention_mask(self) -> Tensor:
        """bool (B, 1, L, L): a token sees the prefix and its own question up to itself; padding sees itself only."""
        query_BL1, key_B1L = self.segments_BL[:, :, None], self.segments_BL[:, None, :]
        length = self.segments_BL.shape[1]
        causal_LL = torch.ones(length, length, dtype=torch.bool).tril()
        seen_BLL = ((key_B1L == 0) | (key_B1L == query_BL1)) & (key_B1L >= 0) & (query_BL1 >= 0) & causal_LL
        return (seen_BLL | torch.eye(length, dtype=torch.bool))[:, None]


class Collator:
    """Examples to a `Batch`. Half of the pictures go through a lossy file first, as real ones do."""

    def __init__(self, preparation: Preparation) -> None:
        self.preparation = preparation

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Sheets, which nothing is asked about, may be among the examples; their crops come last."""
        asked = [example for example in examples if example.questions]
        sheets = [example for example in examples if not example.questions]
        seen = [self._look(example) for example in (*asked, *sheets)]
        pictures = [picture for pictures in seen for picture in pictures]
        crop, patches = self.preparation.crop_size, self.preparation.patches_per_side**2
        return Batch(
            torch.cat([torch.zeros(0, 3, crop, crop), *(picture.crops_N3CC for picture in pictures)]),
            [picture.size for pictures in seen[: len(asked)] for picture in pictures],
            torch.cat([torch.zeros(0, patches, 4, dtype=torch.int64), *(p.targets_NP4 for p in pictures)]),
            *_pad([self._row(example) for example in asked]),
        )

    def _look(self, example: Example) -> list[Seen]:
        rng = random.Random(example.seed)
        drawn = zip(example.scenes, example.pictures, strict=True)
        return [self.preparation.look(scene, _through_file(picture, rng)) for scene, picture in drawn]

    def _row(self, example: Example) -> tuple[list[int], list[int], list[int], list[int]]:
        """ids, positions, segments and labels of one packed row."""
        tokens = [self.preparation.num_tokens(scene) for scene in example.scenes]
        prompts = [self.preparation.prompt(qa.question, tokens) for qa in example.questions]
        shared = self._shared_prefix(prompts) if tokens else 0
        ids, positions, segments = prompts[0][:shared], list(range(shared)), [0] * shared
        labels = [IGNORED] * shared
        for number, (qa, prompt) in enumerate(zip(example.questions, prompts, strict=True), 1):
            answer = self.preparation.answer_ids(qa.answer)
            own = prompt[shared:] + answer[:-1]
            ids += own
            positions += range(shared, shared + len(own))
            segments += [number] * len(own)
            labels += [IGNORED] * (len(own) - len(answer)) + answer
        return ids, positions, segments, labels

    def _shared_prefix(self, prompts: Sequence[Sequence[int]]) -> int:
        """Tokens up to the last picture and a few more, the same in all prompts of an example."""
        last = max(place for place, token_id in enumerate(prompts[0]) if token_id < 0)
        return last + 1 + self.preparation.num_shared_after_picture


class TrainBatches(IterableDataset[Batch]):
    """One batch per step from `first_step` on, of this process's share of the step's examples.

    A step's examples are those of its own seeds, so a resumed training sees what an unbroken one sees.
    """

    def __init__(
        self,
        collator: Collator,
        seed: int,
        first_step: int,
        num_steps: int,
        num_examples: int,
        num_vision_steps: int = 0,
        processes: Processes = ALONE,
    ) -> None:
        self.collator = collator
        self.processes = processes
        self.seed = seed
        self.num_vision_steps = num_vision_steps
        self.first_step, self.num_steps, self.num_examples = first_step, num_steps, num_examples

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.first_step, self.num_steps):
            seeds = [split_seed("train", step * self.num_examples + i, self.seed) for i in range(self.num_examples)]
            # Half of the first stage's examples are sheets; later one is, so that the tower forgets nothing.
            num_sheets = self.num_examples // 2 if step < self.num_vision_steps else 1
            themes = ["sheet"] * num_sheets + [training_theme(seed) for seed in seeds[num_sheets:]]
            own = self.processes.share(list(zip(seeds, themes, strict=True)))
            yield self.collator([make_example(seed, theme) for seed, theme in own])


def _pad(rows: Sequence[tuple[list[int], ...]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ids, positions, segments and labels, each (B, L), padded on the right."""
    length = max((len(row[0]) for row in rows), default=0)
    fills = (0, 0, -1, IGNORED)
    packed = np.stack([np.full((len(rows), length), fill, np.int64) for fill in fills])
    for number, row in enumerate(rows):
        packed[:, number, : len(row[0])] = row
    ids_BL, positions_BL, segments_BL, labels_BL = torch.from_numpy(packed)
    return ids_BL, positions_BL, segments_BL, labels_BL


def _through_file(picture: Image.Image, rng: random.Random) -> Image.Image:
    if rng.random() < 0.5:
        return picture
    data = encode(picture, "JPEG", quality=rng.randint(75, 95))
    return Image.open(BytesIO(data)).convert("RGB")
