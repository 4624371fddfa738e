"""Collate: padding on either side, masks from lengths, pictures joined; and its inverse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_job.engine.collate import PaddingSide, collate, split_rows
from ray_job.models.phi3_vision.processor import PIXELS
from ray_job.rows import Picture, Sample
from ray_job.spec import GenerationParams

PAD = 32000


def sample(ids: list[int], *digests: bytes) -> Sample:
    pictures = [Picture(digest, {PIXELS: np.zeros((1, 1, 3), np.uint8)}) for digest in digests]
    return Sample(0, ids, pictures, GenerationParams())


def test_left_padding_by_hand() -> None:
    batch = collate([sample([1, 5]), sample([1, 6, 7, 8])], PAD)
    assert batch.input_ids_BL.tolist() == [[PAD, PAD, 1, 5], [1, 6, 7, 8]]
    assert batch.attention_mask_BL.tolist() == [[False, False, True, True], [True] * 4]
    assert batch.position_ids_BL.tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert batch.last_columns("left").tolist() == [3, 3]


def test_right_padding_by_hand() -> None:
    batch = collate([sample([1, 5]), sample([1, 6, 7, 8])], PAD, "right")
    assert batch.input_ids_BL.tolist() == [[1, 5, PAD, PAD], [1, 6, 7, 8]]
    assert batch.position_ids_BL.tolist() == [[0, 1, 0, 0], [0, 1, 2, 3]]
    assert batch.last_columns("right").tolist() == [1, 3]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_may_contain_the_pad_id(side: PaddingSide) -> None:
    rows = [[1, PAD, PAD], [PAD], [1, 2, PAD, 4, 5]]
    batch = collate([sample(ids) for ids in rows], PAD, side)
    assert batch.attention_mask_BL.sum(dim=1).tolist() == [3, 1, 5]
    assert split_rows(batch) == rows


def test_pictures_are_joined_once_each_in_order_of_first_use() -> None:
    batch = collate([sample([1]), sample([1], b"b", b"a"), sample([1], b"a"), sample([1], b"c", b"c")], PAD)
    assert [picture.digest for picture in batch.pictures] == [b"b", b"a", b"c"]
    assert batch.picture_indices == [[], [0, 1], [1], [2, 2]]


@given(
    st.lists(st.lists(st.integers(-9, PAD + 63), min_size=1, max_size=40), min_size=1, max_size=8),
    st.sampled_from(["left", "right"]),
)
def test_splitting_undoes_collating(rows: list[list[int]], side: PaddingSide) -> None:
    batch = collate([sample(ids) for ids in rows], PAD, side)
    assert split_rows(batch) == rows
    lasts = batch.input_ids_BL[torch.arange(len(rows)), batch.last_columns(side)]
    assert lasts.tolist() == [ids[-1] for ids in rows]
    for positions_L, mask_L, ids in zip(batch.position_ids_BL, batch.attention_mask_BL, rows, strict=True):
        assert positions_L[mask_L].tolist() == list(range(len(ids)))
