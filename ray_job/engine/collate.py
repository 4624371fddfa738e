"""Joins samples of unequal length, with unequal numbers of pictures, into one padded batch.

Masks and positions come from lengths, never from `ids != pad`: a prompt may contain the pad id. Pictures of all rows
are one flat list, each distinct picture once, with the rows' indices into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ray_job.rows import Picture, Sample

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples as tensors, row b of each belonging to sample b."""

    input_ids_BL: Tensor  # int64; pads hold pad_id, picture k of a row holds −k
    attention_mask_BL: Tensor  # bool; False on pads
    position_ids_BL: Tensor  # int64, counted from each row's first real token; 0 on pads
    lengths_B: Tensor  # int64
    pictures: list[Picture]  # distinct, in order of first use
    picture_indices: list[list[int]]  # row b's pictures, as indices into `pictures`

    def last_columns(self, padding_side: PaddingSide) -> Tensor:
        """Column of each row's last real token, (B,)."""
        if padding_side == "left":
            return torch.full_like(self.lengths_B, self.input_ids_BL.shape[1] - 1)
        return self.lengths_B - 1


def collate(samples: Sequence[Sample], pad_id: int, padding_side: PaddingSide = "left") -> Batch:
    """Pads samples to the longest one.

    Args:
        samples: at least one; each with at least one token.
        pad_id: fills the pads; any id will do, since pads are masked.
        padding_side: where the pads go. Both give the same answers.
    """
    rows = [torch.tensor(sample.input_ids, dtype=torch.int64) for sample in samples]
    input_ids_BL = pad_sequence(rows, batch_first=True, padding_value=pad_id, padding_side=padding_side)
    lengths_B = torch.tensor([len(row) for row in rows])
    mask_BL = length_mask(lengths_B, input_ids_BL.shape[1], padding_side)
    pictures: dict[bytes, Picture] = {}
    for sample in samples:
        for picture in sample.pictures:
            pictures.setdefault(picture.digest, picture)
    order = {digest: index for index, digest in enumerate(pictures)}
    return Batch(
        input_ids_BL=input_ids_BL,
        attention_mask_BL=mask_BL,
        position_ids_BL=(mask_BL.long().cumsum(1) - 1).clamp_min(0) * mask_BL,
        lengths_B=lengths_B,
        pictures=list(pictures.values()),
        picture_indices=[[order[picture.digest] for picture in sample.pictures] for sample in samples],
    )


def split_rows(batch: Batch) -> list[list[int]]:
    """The inverse of padding: each row's token ids."""
    pairs = zip(batch.input_ids_BL, batch.attention_mask_BL, strict=True)
    return [ids_L[mask_L].tolist() for ids_L, mask_L in pairs]


def length_mask(lengths_B: Tensor, width: int, padding_side: PaddingSide) -> Tensor:
    """Bool (B, width): True where a row of that length has a real token."""
    columns_L = torch.arange(width, device=lengths_B.device)
    if padding_side == "left":
        return columns_L >= (width - lengths_B)[:, None]
    return columns_L < lengths_B[:, None]
