"""Prepared pictures to what a vision tower takes at once, and its features back to each picture.

Only pictures whose arrays join without padding go together: no picture's features then depend on another's size.

Shapes: P pictures, D width of a feature.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ray_job.models.auto.normalization import Normalization
from ray_job.models.auto.picture_processor import PIXELS
from ray_job.rows import Picture

_CROP_VALUES = 3 * 336 * 336  # numbers in a picture of common size: the unit in which encoding is counted


def num_crops(picture: Picture) -> int:
    """What encoding a picture costs, in pictures of 336 × 336 pixels."""
    return max(1, round(picture.arrays[PIXELS].size / _CROP_VALUES))


def batches(pictures: Sequence[Picture], max_crops: int | None) -> Iterator[list[int]]:
    """Indices of pictures to encode in one call: they join without padding and cost at most `max_crops`, or are one."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for index, picture in enumerate(pictures):
        alike.setdefault(_shape(picture), []).append(index)
    for indices in alike.values():
        batch: list[int] = []
        room = max_crops
        for index in indices:
            crops = num_crops(pictures[index])
            if batch and room is not None and crops > room:
                yield batch
                batch, room = [], max_crops
            batch.append(index)
            room = None if room is None else room - crops
        yield batch


def joined(
    pictures: Sequence[Picture],
    names: Container[str],
    normalization: Normalization,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Those of the pictures' arrays that have these names, along axis 0, pixels normalised, floats in `dtype`.

    Pixels that are floats are normalised already.
    """
    arrays = {
        name: torch.from_numpy(np.concatenate([picture.arrays[name] for picture in pictures])).to(device)
        for name in pictures[0].arrays
        if name in names
    }
    if PIXELS in arrays and not arrays[PIXELS].is_floating_point():
        arrays[PIXELS] = normalization(arrays[PIXELS])
    return {name: array.to(dtype) if array.is_floating_point() else array for name, array in arrays.items()}


def apart(features: Tensor | Sequence[Tensor], num_pictures: int) -> list[Tensor]:
    """A vision tower's features of P pictures → (tokens, D) of each.

    A sequence holds each picture's, or each tile's, of which every picture has as many; so does a tensor's axis 0.

    Raises:
        ValueError: they cannot be told apart.
    """
    if len(features) % num_pictures:
        raise ValueError(f"features of {num_pictures} pictures come in {len(features)} parts")
    count = len(features) // num_pictures
    parts = [features[start : start + count] for start in range(0, len(features), count)]
    return [flat(part) for part in parts]


def flat(features: Tensor | Sequence[Tensor]) -> Tensor:
    """(…, tokens, D), or several of them → (tokens, D)."""
    if isinstance(features, Tensor):
        return features.reshape(-1, features.shape[-1])
    return torch.cat([flat(each) for each in features])


def _shape(picture: Picture) -> tuple[Any, ...]:
    """Equal where pictures join along axis 0, and their features can be told apart."""
    arrays = picture.arrays
    # Of tables of patches, a vision tower is told where each picture ends; other features are cut evenly.
    is_table = arrays[PIXELS].ndim == 2
    return tuple((name, array.dtype, array.shape[1:] if is_table else array.shape) for name, array in arrays.items())
