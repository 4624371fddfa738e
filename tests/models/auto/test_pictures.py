"""Pictures for a vision tower: scaled as the image processor scales them, joined, and equal in whatever company."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from ray_job.models.auto.families.table import family_of
from ray_job.models.auto.normalization import Normalization, normalization_of
from ray_job.models.auto.packed import PackedAuto
from ray_job.models.auto.pictures import apart, batches, joined, num_crops
from ray_job.rows import Picture
from tests.models.auto.families import FAMILIES
from tests.models.auto.library_rows import Family, family, library_pixels, picture

HALF = Normalization(1 / 255, (0.5, 0.25, 0.5), (0.5, 0.25, 0.25))


def distinct(made: Family) -> list[Picture]:
    return list({each.digest: each for sample in made.samples for each in sample.pictures}.values())


def of_shape(*shape: int) -> Picture:
    return Picture(b"", {"pixel_values": np.zeros(shape, dtype=np.uint8), "image_sizes": np.zeros((1, 2))})


@pytest.mark.parametrize("name", FAMILIES)
def test_pixels_are_scaled_as_the_library_scales_them(name: str) -> None:
    made = family(name)
    for number, each in enumerate(distinct(made)[:3]):
        ours = joined([each], {"pixel_values"}, made.normalization, torch.device("cpu"), torch.float32)
        theirs = library_pixels(name, picture(number))
        assert each.arrays["pixel_values"].dtype == np.uint8
        assert torch.allclose(ours["pixel_values"], theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_features_are_equal_in_company(name: str) -> None:
    """Of all pictures at once, in another order, and of each alone; sums of other shapes may round otherwise."""
    made = family(name)
    packed = family_of(made.model.config.model_type)(made.model, made.normalization)
    pictures = distinct(made)
    try:
        alone = [packed.encode_pictures([each])[0] for each in pictures]
        together = packed.encode_pictures([*pictures, *pictures[::-1]])
        few = packed.encode_pictures(pictures, max_crops=1)
    finally:
        packed.release()
    assert len(pictures) >= 3
    assert not torch.allclose(alone[0][:4], alone[1][:4], atol=0.1)
    for found in (together[: len(pictures)], together[len(pictures) :][::-1], few):
        for ours, expected in zip(found, alone, strict=True):
            assert (ours - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_pictures_join_only_without_padding() -> None:
    tiles = [of_shape(1, count, 3, 28, 28) for count in (3, 5, 3)]
    assert list(batches(tiles, None)) == [[0, 2], [1]]
    tables = [of_shape(count, 588) for count in (4, 6, 4)]
    assert list(batches(tables, None)) == [[0, 1, 2]]


def test_a_batch_costs_at_most_as_much_as_is_allowed() -> None:
    pictures = [of_shape(1, 2, 3, 336, 336)] * 5
    assert num_crops(pictures[0]) == 2
    assert list(batches(pictures, 4)) == [[0, 1], [2, 3], [4]]
    assert list(batches(pictures, 1)) == [[0], [1], [2], [3], [4]]
    assert num_crops(of_shape(1, 3, 14, 14)) == 1


def test_features_of_each_picture() -> None:
    features = torch.arange(24.0).view(4, 3, 2)
    first, second = apart(features, 2)
    assert torch.equal(first, features[:2].reshape(6, 2))
    assert torch.equal(second, features[2:].reshape(6, 2))
    assert [len(each) for each in apart([torch.zeros(3, 2), torch.zeros(5, 2)], 2)] == [3, 5]
    with pytest.raises(ValueError, match="2 pictures come in 3 parts"):
        apart(features[:3], 2)


def test_channels_of_pixels_and_of_patches() -> None:
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8)
    expected = torch.tensor([-1.0, 3.0, -1.2])
    assert torch.allclose(HALF(pixels.view(1, 3, 1, 1)).flatten(), expected)
    assert torch.allclose(HALF(pixels.repeat_interleave(2).view(1, 6)), expected.repeat_interleave(2)[None])


@pytest.mark.parametrize("shape", [(1, 4, 6), (1, 4, 28, 28), (2, 7), (1, 28, 28, 3)])
def test_pixels_without_channels_where_they_should_be(shape: Sequence[int]) -> None:
    with pytest.raises(ValueError, match="no axis of 3 channels"):
        HALF(torch.zeros(*shape, dtype=torch.uint8))
    assert Normalization(0.5)(torch.ones(*shape, dtype=torch.uint8)).unique().tolist() == [0.5]


def test_a_mean_for_each_channel_or_for_all() -> None:
    assert normalization_of(0.5) == (0.5, 0.5, 0.5)
    assert normalization_of([0.1, 0.2, 0.3]) == (0.1, 0.2, 0.3)
    assert normalization_of(None) == ()
    with pytest.raises(ValueError, match="3 means and 0 deviations"):
        Normalization(1.0, (0.5,) * 3)


def test_placeholders_and_features_that_do_not_match() -> None:
    made = family("llava_next")
    packed = PackedAuto(made.model, made.normalization)
    try:
        with pytest.raises(ValueError, match="placeholders by picture"):
            packed.embed(torch.tensor([5, -1, -1]), [torch.zeros(3, 64)])
        with pytest.raises(ValueError, match="outside the vocabulary of 384"):
            packed.embed(torch.tensor([5, 384]))
    finally:
        packed.release()
