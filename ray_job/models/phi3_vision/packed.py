"""Phi-3-Vision as a continuously batching engine drives it: tokens of many rows side by side, without padding.

The layers are the library's own submodules; only attention is the engine's, which knows where each row's keys lie.
Equal to `model.py`, measured by tests/engine/test_packed.py.

Shapes: T tokens of any rows, packed; D decoder width; N query heads, H key/value heads, C head_dim; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer, apply_rotary_pos_emb

from ray_job.models.phi3_vision.model import Phi3VisionModel


class Attend(Protocol):
    """The engine's attention over what it stores."""

    def __call__(self, layer: int, query_TNC: Tensor, key_THC: Tensor, value_THC: Tensor) -> Tensor:
        """Rotated queries and keys, and values, of a layer's new tokens → (T, N · C)."""


class PackedPhi3Vision:
    """The model behind the engine's seam. Holds no state between calls."""

    def __init__(self, model: Phi3VisionModel) -> None:
        config = model.config
        self._model = model
        self.num_layers = config.num_hidden_layers
        self.num_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.max_len = config.max_position_embeddings
        self.sliding_window = config.sliding_window

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._model.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype, and that of keys and values."""
        return self._model.dtype

    def is_long(self, num_tokens: int) -> bool:
        """Whether a row of so many tokens takes the long rotary factors; keys of the short ones are then stale."""
        return self._model.config.is_long(num_tokens)

    def num_crops(self, height: int, width: int) -> int:
        """Pieces a picture of that size, in pixels, is encoded in."""
        size = self._model.config.vision.image_size
        return 1 + (height // size) * (width // size)

    def encode_pictures(self, pictures: Sequence[Tensor], max_crops: int | None = None) -> list[Tensor]:
        """uint8 (H, W, 3) each → features (tokens, D) each."""
        return self._model.encode_pictures(pictures, max_crops)

    def embed(self, input_ids_L: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        """int64 (L,) on the CPU, −k for picture k → (L, D). Raises ValueError as `Phi3VisionModel.embed_row`."""
        return self._model.embed_row(input_ids_L, features)

    def forward(self, embeds_TD: Tensor, positions_T: Tensor, is_long_T: Tensor, attend: Attend) -> Tensor:
        """Hidden states (T, D) before the last norm.

        positions_T   int64, each token's place in its own row
        is_long_T     bool, whether its row takes the long rotary factors
        """
        # Tokens are rows of one token each, so that each takes its own row's rotary table.
        cos_T1C, sin_T1C = self._model.rope.cos_sin(positions_T[:, None], is_long_T, embeds_TD.dtype)
        hidden_TD = embeds_TD
        for index, layer in enumerate(self._model.model.layers):
            assert isinstance(layer, Phi3DecoderLayer)
            hidden_TD = self._layer(layer, index, hidden_TD, (cos_T1C[:, 0], sin_T1C[:, 0]), attend)
        return hidden_TD

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """float32 (S, V) of the tokens that need them."""
        logits_SV: Tensor = self._model.lm_head(self._model.model.norm(hidden_SD))
        return logits_SV.float()

    def _layer(
        self,
        layer: Phi3DecoderLayer,
        index: int,
        hidden_TD: Tensor,
        cos_sin: tuple[Tensor, Tensor],
        attend: Attend,
    ) -> Tensor:
        attention = layer.self_attn
        qkv_TC = attention.qkv_proj(layer.input_layernorm(hidden_TD))
        heads_TC = qkv_TC.view(len(hidden_TD), -1, self.head_dim)
        num_queries = heads_TC.shape[1] - 2 * self.num_heads
        query_TNC, key_THC, value_THC = heads_TC.split((num_queries, self.num_heads, self.num_heads), dim=1)
        query_TNC, key_THC = apply_rotary_pos_emb(query_TNC, key_THC, *cos_sin)  # type: ignore[no-untyped-call]
        hidden_TD = hidden_TD + attention.o_proj(attend(index, query_TNC, key_THC, value_THC))
        output_TD: Tensor = hidden_TD + layer.mlp(layer.post_attention_layernorm(hidden_TD))
        return output_TD
