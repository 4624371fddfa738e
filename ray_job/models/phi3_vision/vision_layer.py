"""Parts of the CLIP vision tower, under the checkpoint's parameter names.

Shapes: N crops, C crop side in pixels, P places: the class token, then the patches row by row; V tower width,
H heads, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ray_job.models.phi3_vision.activations import ACTIVATIONS
from ray_job.models.phi3_vision.attention import Attention, attend
from ray_job.models.phi3_vision.configuration import VisionConfig


class PatchEmbeddings(nn.Module):
    """A convolution that makes a vector of each patch, the class vector before them, and each place's own vector."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.image_size = config.image_size
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)

    def forward(self, crops_N3CC: Tensor) -> Tensor:
        """(N, 3, C, C), any float dtype → (N, P, V). Raises ValueError for crops of another size."""
        if crops_N3CC.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"crops of {tuple(crops_N3CC.shape[-2:])} pixels, the tower reads {self.image_size} each way"
            )
        patches_NVSS: Tensor = self.patch_embedding(crops_N3CC.to(self.patch_embedding.weight.dtype))
        patches_NPV = patches_NVSS.flatten(2).transpose(1, 2)
        class_N1V = self.class_embedding.expand(len(crops_N3CC), 1, -1)
        # A model that keeps its weights in 16 bits (`models/casting.py`) adds them in the patches' dtype.
        positions_PV = self.position_embedding.weight.to(patches_NPV.dtype)
        return torch.cat([class_N1V, patches_NPV], dim=1) + positions_PV


class VisionAttention(nn.Module):
    """Every place attends to every place of its own crop."""

    def __init__(self, config: VisionConfig, attention: Attention) -> None:
        super().__init__()
        width = config.hidden_size
        self.attention: Attention = attention
        self.head_dim = width // config.num_attention_heads
        # In this order `init_weights` fills them.
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_NPV: Tensor) -> Tensor:
        """(N, P, V) → (N, P, V)."""
        query_NHPD, key_NHPD, value_NHPD = (
            projection(x_NPV).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended_NPV: Tensor = self.out_proj(attend(self.attention, query_NHPD, key_NHPD, value_NHPD))
        return attended_NPV


class VisionMLP(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x_NPV: Tensor) -> Tensor:
        """(N, P, V) → (N, P, V)."""
        projected_NPV: Tensor = self.fc2(self.activation(self.fc1(x_NPV)))
        return projected_NPV


class VisionLayer(nn.Module):
    """Attention and MLP, each on its normed input and added to it."""

    def __init__(self, config: VisionConfig, attention: Attention) -> None:
        super().__init__()
        self.self_attn = VisionAttention(config, attention)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x_NPV: Tensor) -> Tensor:
        """(N, P, V) → (N, P, V)."""
        x_NPV = x_NPV + self.self_attn(self.layer_norm1(x_NPV))
        mixed_NPV: Tensor = self.mlp(self.layer_norm2(x_NPV))
        return x_NPV + mixed_NPV
