"""Where the vision tower starts: heads that look at neighbouring patches, as a convolution would.

A tower from random weights needs tens of thousands of pictures to find out that neighbours matter. Here some
channels carry sines and cosines of a patch's row and column, and the queries and keys read only these, shifted
by one or two patches, each head in another direction. It is a start only: all weights are trained.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ray_job.models.phi3_vision.configuration import VisionConfig
from ray_job.models.phi3_vision.vision import VisionTower
from ray_job.models.phi3_vision.vision_layer import VisionLayer

_DIRECTIONS = ((0, -1), (0, 1), (-1, 0), (1, 0))  # (rows, columns), by head
_DISTANCES = (1, 1, 2)  # by layer
_FREQUENCIES = (0.4, 0.8, 1.2, 1.6, 2.0, 2.4)  # radians a patch
_SHARPNESS = 12.0  # the logit of the patch a head looks at, before training


@torch.no_grad()
def init_tower(tower: VisionTower, config: VisionConfig) -> None:
    """Overwrites position embeddings, queries and keys; leaves towers without four heads as they are."""
    head_dim = config.hidden_size // config.num_attention_heads
    frequencies = _FREQUENCIES[: head_dim // 4]
    num_channels = 4 * len(frequencies)
    side = config.image_size // config.patch_size
    rows, columns = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    embeddings = tower.embeddings
    embeddings.patch_embedding.weight[:num_channels] = 0
    embeddings.position_embedding.weight[1:, :num_channels] = _waves(rows, columns, frequencies)
    embeddings.class_embedding[:num_channels] = 0
    scale = math.sqrt(_SHARPNESS / (2 * len(frequencies)) * math.sqrt(head_dim))
    layers = tower.encoder["layers"]
    assert isinstance(layers, torch.nn.ModuleList)
    for layer, distance in zip(layers, _DISTANCES, strict=False):
        assert isinstance(layer, VisionLayer)
        attention = layer.self_attn
        attention.q_proj.weight.mul_(0.1)
        attention.k_proj.weight.mul_(0.1)
        for head in range(config.num_attention_heads):
            step_rows, step_columns = (distance * step for step in _DIRECTIONS[head % len(_DIRECTIONS)])
            own = slice(head * head_dim, head * head_dim + num_channels)
            turn = _rotation(step_rows, step_columns, frequencies)
            attention.q_proj.weight[own, :num_channels] = scale * turn
            attention.k_proj.weight[own, :num_channels] = scale * torch.eye(num_channels)


def _waves(rows_P: Tensor, columns_P: Tensor, frequencies: tuple[float, ...]) -> Tensor:
    """(P, 4·F): cosine and sine of the row at each frequency, then of the column."""
    pairs = [(f * axis.float()) for axis in (rows_P, columns_P) for f in frequencies]
    return torch.stack([wave for angle in pairs for wave in (angle.cos(), angle.sin())], dim=-1)


def _rotation(rows: int, columns: int, frequencies: tuple[float, ...]) -> Tensor:
    """The matrix that takes the waves of a patch to those of the patch so many rows and columns further."""
    angles = [f * steps for steps in (rows, columns) for f in frequencies]
    blocks = [torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]) for a in angles]
    rotation: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return rotation
