"""Phi-3-Vision as the static engine drives it: rows padded to one length over one cache.

Shapes: B rows, L new tokens, D decoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from ray_job.engine.collate import PaddingSide, collate
from ray_job.engine.padded_model import NextTokens
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.processor import PIXELS
from ray_job.rows import Picture, Sample

_ANY_ID = 0  # pads are embedded as zeros


class PaddedPhi3Vision:
    """The model as the engine's `PaddedModel`; shorter rows are padded on either side, with the same answers."""

    max_rows: int | None = None

    def __init__(self, model: Phi3VisionModel, padding_side: PaddingSide = "left") -> None:
        self._model = model
        self._padding_side: PaddingSide = padding_side
        self.max_len = model.max_len

    def is_long(self, num_tokens: int) -> bool:
        """Whether a row of so many tokens takes the long rotary factors; keys of the short ones are then stale."""
        return self._model.is_long(num_tokens)

    def encode_pictures(self, pictures: Sequence[Picture]) -> list[Tensor]:
        """Features (tokens, D) of each."""
        return self._model.encode_pictures([torch.tensor(picture.arrays[PIXELS]) for picture in pictures])

    def generate(self, samples: Sequence[Sample], encoded: Mapping[bytes, Tensor], next_tokens: NextTokens) -> None:
        """As `PaddedModel.generate`. Raises ValueError as `Phi3VisionModel.embed_row`."""
        model, device = self._model, self._model.device
        batch = collate(samples, _ANY_ID, self._padding_side)
        rows_LD = [
            model.embed_row(torch.tensor(sample.input_ids), [encoded[picture.digest] for picture in sample.pictures])
            for sample in samples
        ]
        # By each row's own length, never by the batch's; a row that crosses is run again.
        is_long_B = torch.tensor([self.is_long(len(sample.input_ids)) for sample in samples], device=device)
        mask_BL = batch.attention_mask_BL.to(device)
        positions_B = batch.lengths_B.to(device)
        cache = model.new_cache()
        logits_BV = model.forward(
            pad_sequence(rows_LD, batch_first=True, padding_side=self._padding_side),
            position_ids_BL=batch.position_ids_BL.to(device),
            attention_mask_BL=mask_BL,
            is_long_B=is_long_B,
            cache=cache,
            last_B=batch.last_columns(self._padding_side).to(device),
        )
        while (tokens := next_tokens(logits_BV)) is not None:
            mask_BL = pad(mask_BL, (0, 1), value=True)
            logits_BV = model.forward(
                model.embed_row(torch.tensor(tokens))[:, None],
                position_ids_BL=positions_B[:, None],
                attention_mask_BL=mask_BL,
                is_long_B=is_long_B,
                cache=cache,
                last_B=torch.zeros_like(positions_B),
            )
            positions_B = (positions_B + 1).clamp_max(self.max_len - 1)  # of rows that are finished
