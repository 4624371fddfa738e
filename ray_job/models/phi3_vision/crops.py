"""HD pixels to the normalised crops the vision tower reads; runs on whatever device the pixels are on.

Shapes: H, W pixels; N crops, the global view included; C crop side. Equal to the official image processor
of Phi-3-vision-128k-instruct, measured by tests/models/phi3_vision/test_image_processing.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_job.models.phi3_vision.preprocessor_config import CLIP_MEAN, CLIP_STD


def pixels_to_crops(
    pixels_HW3: Tensor,
    crop_size: int = 336,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Tensor:
    """uint8 (H, W, 3) → float32 (1 + rows·cols, 3, C, C): the global view, then the crops row by row.

    H and W are multiples of `crop_size`; anything else is a ValueError.
    """
    height, width, channels = pixels_HW3.shape
    if pixels_HW3.dtype != torch.uint8 or channels != 3 or height % crop_size or width % crop_size:
        shape = tuple(pixels_HW3.shape)
        raise ValueError(f"expected uint8 (H, W, 3) in whole crops of {crop_size}, got {pixels_HW3.dtype} {shape}")
    image_3HW = _normalise(pixels_HW3.permute(2, 0, 1), mean, std)
    global_13CC = F.interpolate(image_3HW[None], size=(crop_size, crop_size), mode="bicubic", align_corners=False)
    rows, cols = height // crop_size, width // crop_size
    grid = image_3HW.reshape(3, rows, crop_size, cols, crop_size).permute(1, 3, 0, 2, 4)
    return torch.cat([global_13CC, grid.reshape(rows * cols, 3, crop_size, crop_size)])


def _normalise(image_3HW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    # Divide, subtract, divide, each in float32: folding them into one scale changes the last bits.
    image_3HW = image_3HW.to(torch.float32, memory_format=torch.contiguous_format) / 255
    mean_311 = torch.tensor(mean, dtype=torch.float32, device=image_3HW.device)[:, None, None]
    std_311 = torch.tensor(std, dtype=torch.float32, device=image_3HW.device)[:, None, None]
    return (image_3HW - mean_311) / std_311
