"""Rotary tables with the short or the long LongRoPE factors chosen for each row by that row's own length.

The official code chooses once for a whole batch, from its longest row, so that one long neighbour changes
every answer. Here a row's answer depends on the row alone.

Shapes: B rows, L tokens, D head_dim. Equal to the official tables of Phi-3 and Phi-3.5, measured by
tests/models/phi3_vision/test_rope.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ray_job.models.phi3_vision.configuration import Phi3VisionConfig


class RopeTables:
    """cos and sin for any positions. Not a module, so that casting a model never rounds the frequencies."""

    def __init__(self, config: Phi3VisionConfig) -> None:
        self.attention_scaling = _attention_scaling(config)
        half = config.head_dim // 2
        plain = (1.0,) * half
        factors = [config.short_factor or plain, config.long_factor or plain]
        # On the CPU by name: the model may be under construction on the meta device.
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device="cpu").float() / config.head_dim
        factors_2F = torch.tensor(factors, dtype=torch.float32, device="cpu")
        # This order of operations; another differs by up to 5e-3 at far positions.
        self.inv_freq_2F = 1.0 / (factors_2F * config.rope_theta**exponents)
        self._by_device = {self.inv_freq_2F.device: self.inv_freq_2F}

    def cos_sin(
        self, position_ids_BL: Tensor, is_long_B: Tensor, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """cos and sin, each (B, L, D), for a bool per row that says whether it takes the long factors.

        Computed and scaled in float32, then cast, as the official code does.
        """
        inv_freq_BF = self._on(position_ids_BL.device)[is_long_B.long()]
        angles_BLF = position_ids_BL[:, :, None].float() * inv_freq_BF[:, None, :]
        angles_BLD = torch.cat((angles_BLF, angles_BLF), dim=-1)
        cos_BLD = angles_BLD.cos() * self.attention_scaling
        sin_BLD = angles_BLD.sin() * self.attention_scaling
        return cos_BLD.to(dtype), sin_BLD.to(dtype)

    def _on(self, device: torch.device) -> Tensor:
        if device not in self._by_device:
            self._by_device[device] = self.inv_freq_2F.to(device)
        return self._by_device[device]


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads (…, C) turned by the angles of their places; `cos` and `sin` broadcast against them.

    Channel i of the first half is turned with channel i of the second one.
    """
    first, second = heads.chunk(2, dim=-1)
    return (heads * cos).add_(torch.cat((-second, first), dim=-1).mul_(sin))


def _attention_scaling(config: Phi3VisionConfig) -> float:
    """The factor on cos and sin that makes up for the stretched context, the same for short and long."""
    scale = config.max_position_embeddings / config.original_max_position_embeddings
    if config.long_factor is None or scale <= 1.0:
        return 1.0
    return math.sqrt(1 + math.log(scale) / math.log(config.original_max_position_embeddings))
