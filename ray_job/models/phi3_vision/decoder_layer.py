"""One layer of the Phi-3 decoder, under the checkpoint's parameter names.

Shapes: B rows, L new tokens, D decoder width, M width of the MLP; N query heads, H key/value heads, C head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ray_job.models.phi3_vision.activations import ACTIVATIONS
from ray_job.models.phi3_vision.attention import Attention, attend
from ray_job.models.phi3_vision.cache import KeyValueStore
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig
from ray_job.models.phi3_vision.rope import rotate


class RMSNorm(nn.Module):
    """Divides by the root of the mean square, in float32; the weight multiplies the result in the input's dtype."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        wide = x.float()
        normed: Tensor = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)
        return self.weight * normed if torch.is_grad_enabled() else normed.mul_(self.weight)


class SelfAttention(nn.Module):
    """Queries, keys and values from one product, rotated; grouped heads where there are fewer keys than queries."""

    def __init__(self, config: Phi3VisionConfig, attention: Attention, layer: int) -> None:
        super().__init__()
        self.attention: Attention = attention
        self.layer = layer
        self.head_dim = config.head_dim
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        num_all = self.num_heads + 2 * self.num_kv_heads
        # In this order `init_weights` fills them.
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)
        self.qkv_proj = nn.Linear(config.hidden_size, num_all * self.head_dim, bias=False)

    def forward(
        self,
        hidden_BLD: Tensor,
        cos_sin: tuple[Tensor, Tensor],
        mask_BHLK: Tensor | None,
        cache: KeyValueStore | None,
    ) -> Tensor:
        """(B, L, D) → (B, L, D)."""
        heads_BNLC = self.qkv_proj(hidden_BLD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        counts = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
        query_BNLC, key_BHLC, value_BHLC = torch.split(heads_BNLC, counts, dim=1)
        cos_B1LC, sin_B1LC = (table_BLC[:, None] for table_BLC in cos_sin)
        query_BNLC, key_BHLC = rotate(query_BNLC, cos_B1LC, sin_B1LC), rotate(key_BHLC, cos_B1LC, sin_B1LC)
        if cache is not None:
            key_BHLC, value_BHLC = cache.update(key_BHLC, value_BHLC, self.layer)
        is_causal = hidden_BLD.shape[1] > 1  # a single new token sees every key
        attended_BLD: Tensor = self.o_proj(
            attend(self.attention, query_BNLC, key_BHLC, value_BHLC, mask_BHLK, is_causal)
        )
        return attended_BLD


class GatedMLP(nn.Module):
    """The gate and what it lets through come from one product, gate first."""

    def __init__(self, config: Phi3VisionConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        gate_BLM, up_BLM = self.gate_up_proj(x_BLD).chunk(2, dim=-1)
        projected_BLD: Tensor = self.down_proj(up_BLM * self.activation(gate_BLM))
        return projected_BLD


class DecoderLayer(nn.Module):
    """Attention and MLP, each on its normed input and added to it."""

    def __init__(self, config: Phi3VisionConfig, attention: Attention, layer: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, attention, layer)
        self.mlp = GatedMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden_BLD: Tensor,
        cos_sin: tuple[Tensor, Tensor],
        mask_BHLK: Tensor | None = None,
        cache: KeyValueStore | None = None,
    ) -> Tensor:
        """(B, L, D) → (B, L, D).

        cos_sin     the rotary tables of the new tokens, each (B, L, C)
        mask_BHLK   as `attend` takes it; None: each new token sees itself and what came before it
        cache       takes the new keys and values in; its older ones are attended to as well
        """
        hidden_BLD = hidden_BLD + self.self_attn(self.input_layernorm(hidden_BLD), cos_sin, mask_BHLK, cache)
        gated_BLD: Tensor = self.mlp(self.post_attention_layernorm(hidden_BLD))
        return hidden_BLD + gated_BLD
