"""A row as the continuous engine sees it: the scheduler's row, its answer so far, and its pictures' features."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ray_job.engine.interface import Vocabulary
from ray_job.engine.packed_model import PackedModel
from ray_job.engine.row import Prompt, Row
from ray_job.engine.sequence import Sequence
from ray_job.rows import Picture, Sample


@dataclass(eq=False, kw_only=True)
class RunningRow(Row):
    """One sample, from the queue to its result."""

    answer: Sequence
    started_s: float = 0.0  # when it was first admitted, by time.monotonic
    features: dict[int, Tensor] = field(default_factory=dict)  # of picture k, until its placeholders are computed

    @classmethod
    def of(cls, sample: Sample, vocabulary: Vocabulary, model: PackedModel) -> RunningRow:
        """A row that has generated nothing. Raises ValueError where placeholders and pictures do not match."""
        if not len(sample.input_ids):
            raise ValueError("the prompt has no token")
        ids_L = np.asarray(sample.input_ids, dtype=np.int32)
        numbers = np.unique(-ids_L[ids_L < 0]).tolist()
        if numbers != list(range(1, len(sample.pictures) + 1)):
            raise ValueError(f"the prompt has placeholders of pictures {numbers}, {len(sample.pictures)} are given")
        layout = model.layout(ids_L, sample.pictures)
        layout.check(model.num_axes, len(ids_L))
        return cls(
            prompt=Prompt(ids_L, [picture.digest for picture in sample.pictures], layout),
            max_tokens=max(min(len(ids_L) + sample.params.max_new_tokens, model.max_len), len(ids_L) + 1),
            num_tokens=len(ids_L),
            is_long=model.is_long(len(ids_L)),
            answer=Sequence(sample, vocabulary, model.max_len),
        )

    @property
    def sample(self) -> Sample:
        return self.answer.sample

    def missing_pictures(self) -> dict[int, Picture]:
        """Pictures, by number, whose features are needed for what is left to compute and not here."""
        left_L = self.prompt.ids_L[self.num_computed :]
        if not self.sample.pictures or not len(left_L) or left_L.min() >= 0:
            return {}
        numbers = np.unique(-left_L[left_L < 0]).tolist()
        return {number: self.sample.pictures[number - 1] for number in numbers if number not in self.features}

    def take_features(self, number: int, features_TD: Tensor) -> None:
        """Features of picture `number`. Raises ValueError unless it has as many placeholders."""
        num_places = int((self.prompt.ids_L == -number).sum())
        if num_places != len(features_TD):
            raise ValueError(f"picture {number} has {num_places} placeholders and {len(features_TD)} features")
        self.features[number] = features_TD

    def tokens(self, start: int, end: int) -> tuple[Tensor, list[Tensor]]:
        """Ids of tokens `start` to `end`, pictures numbered anew from 1, and those pictures' features in that range."""
        prompt_L = self.prompt.ids_L[start:end]
        first = start + len(prompt_L) - len(self.prompt)
        answered = self.answer.token_ids[first : end - len(self.prompt)] if end > len(self.prompt) else []
        ids_L = torch.tensor([*prompt_L.tolist(), *answered])
        features = []
        if len(prompt_L) and prompt_L.min() < 0:
            for index, number in enumerate(np.unique(-prompt_L[prompt_L < 0]).tolist(), start=1):
                before = int((self.prompt.ids_L[:start] == -number).sum())
                count = int((prompt_L == -number).sum())
                features.append(self.features[number][before : before + count])
                ids_L[: len(prompt_L)][torch.from_numpy(prompt_L == -number)] = -index
        return ids_L, features

    def forget_features(self) -> None:
        """Lets go of features that no token left to compute needs."""
        if self.features and self.num_computed >= len(self.prompt):
            self.features.clear()
