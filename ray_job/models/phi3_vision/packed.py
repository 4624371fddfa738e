"""Phi-3-Vision as a continuously batching engine drives it: tokens of many rows side by side, without padding.

Submodules and weights are the model's; only attention is the engine's, which knows where each row's keys lie.
Equal to `model.py`, measured by tests/engine/test_packed.py.

Shapes: T tokens of any rows, packed, S of them whose hidden states are wanted; D decoder width; L tokens of a prompt;
N query heads, H key/value heads, C head_dim; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ray_job.engine.packed_model import Attend, AttentionLayer, PromptLayout
from ray_job.models.phi3_vision.decoder_layer import DecoderLayer
from ray_job.models.phi3_vision.model import Phi3VisionModel
from ray_job.models.phi3_vision.processor import PIXELS
from ray_job.models.phi3_vision.rope import rotate
from ray_job.models.projection import Packing, Projection, shared_copy
from ray_job.rows import Picture


class PackedPhi3Vision:
    """The model as the engine's `PackedModel`. Holds no state between calls.

    Args:
        model: stays as it is. A CPU keeps its weights a second time, laid out for products (`projection.py`), if they
            are small beside the free memory.
        free_bytes: that memory; by default what is available to this process now.
    """

    def __init__(self, model: Phi3VisionModel, free_bytes: int | None = None) -> None:
        config = model.config
        self._model = shared_copy(model)
        packing = Packing(self._model, model.dtype, free_bytes)
        packing.put_in()
        self.packed_bytes = packing.num_bytes
        self._num_heads, self._head_dim = config.num_key_value_heads, config.head_dim
        attention = AttentionLayer(self._num_heads, self._head_dim, config.sliding_window)
        self.layers: Sequence[AttentionLayer] = [attention] * config.num_hidden_layers
        self.num_axes = 1
        self.max_len = config.max_position_embeddings
        layers = [layer for layer in self._model.model.layers if isinstance(layer, DecoderLayer)]
        self._layers = [_Layer(layer) for layer in layers]
        self._last = _LastProducts(layers[-1], model.dtype if packing.num_bytes else None)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of activations, keys and values."""
        return self._model.dtype

    def is_long(self, num_tokens: int) -> bool:
        """Whether a row of so many tokens takes the long rotary factors; keys of the short ones are then stale."""
        return self._model.config.is_long(num_tokens)

    def num_crops(self, picture: Picture) -> int:
        """Pieces a picture is encoded in."""
        height, width = map(int, picture.arrays[PIXELS].shape[:2])
        size = self._model.config.vision.image_size
        return 1 + (height // size) * (width // size)

    def encode_pictures(self, pictures: Sequence[Picture], max_crops: int | None = None) -> list[Tensor]:
        """Features (tokens, D) of each."""
        return self._model.encode_pictures([torch.tensor(each.arrays[PIXELS]) for each in pictures], max_crops)

    def layout(self, ids_L: npt.NDArray[np.int32], pictures: Sequence[Picture]) -> PromptLayout:
        """Of pictures as of text: one token after the other."""
        return PromptLayout.in_order(len(ids_L))

    def embed(self, input_ids_L: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        """int64 (L,) on the CPU, −k for picture k → (L, D). Raises ValueError as `Phi3VisionModel.embed_row`."""
        return self._model.embed_row(input_ids_L, features)

    def embed_tokens(self, ids_T: Tensor) -> Tensor:
        """Ids of the vocabulary, int64 (T,) on the model's device and not looked at → (T, D)."""
        embeds_TD: Tensor = self._model.model.embed_tokens(ids_T)
        return embeds_TD

    def forward(
        self, embeds_TD: Tensor, positions_AT: Tensor, is_long_T: Tensor, wanted_S: Tensor, attend: Attend
    ) -> Tensor:
        """Hidden states (S, D) before the last norm, of tokens `wanted_S` only.

        positions_AT  int64 (1, T), each token's place in its own row
        is_long_T     bool, whether its row takes the long rotary factors
        wanted_S      int64, ascending; the last layer keeps all keys and values but goes on with these tokens alone
        """
        # Tokens are rows of one token each, so that each takes its own row's rotary table.
        cos_T1C, sin_T1C = self._model.rope.cos_sin(positions_AT[0, :, None], is_long_T, embeds_TD.dtype)
        cos_sin = cos_T1C, sin_T1C  # the one token's axis broadcasts over its heads
        hidden_TD = embeds_TD
        *layers, last = self._layers
        for index, layer in enumerate(layers):
            query_TNC, key_THC, value_THC = self._qkv(layer, hidden_TD)
            query_TNC, key_THC = rotate(query_TNC, *cos_sin), rotate(key_THC, *cos_sin)
            hidden_TD = layer.rest(hidden_TD, attend(index, query_TNC, key_THC, value_THC))
        if len(wanted_S) == len(hidden_TD):
            query_TNC, key_THC, value_THC = self._qkv(last, hidden_TD)
            query_TNC, key_THC = rotate(query_TNC, *cos_sin), rotate(key_THC, *cos_sin)
            return last.rest(hidden_TD, attend(len(layers), query_TNC, key_THC, value_THC))
        return self._last_layer(last, hidden_TD, cos_sin, wanted_S, attend)

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """float32 (S, V) of the tokens that need them."""
        logits_SV: Tensor = self._model.lm_head(self._model.model.norm(hidden_SD))
        return logits_SV.float()

    def _qkv(self, layer: _Layer, hidden_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (T, N, C), keys and values (T, H, C), not rotated."""
        qkv_TC = layer.qkv_proj(layer.input_layernorm(hidden_TD))
        heads_TC = qkv_TC.view(len(hidden_TD), -1, self._head_dim)
        num_queries = heads_TC.shape[1] - 2 * self._num_heads
        query_TNC, key_THC, value_THC = torch.split(heads_TC, [num_queries, self._num_heads, self._num_heads], dim=1)
        return query_TNC, key_THC, value_THC

    def _last_layer(
        self,
        layer: _Layer,
        hidden_TD: Tensor,
        cos_sin: tuple[Tensor, Tensor],
        wanted_S: Tensor,
        attend: Attend,
    ) -> Tensor:
        """The last layer: of a prompt only the last token goes on, while later tokens still read the keys of all."""
        normed_TD = layer.input_layernorm(hidden_TD)
        cos_T1C, sin_T1C = cos_sin
        num_queries = self._model.config.num_attention_heads
        query_SNC = self._last.query(normed_TD[wanted_S]).view(len(wanted_S), num_queries, self._head_dim)
        key_value_THC = self._last.key_value(normed_TD).view(len(hidden_TD), -1, self._head_dim)
        key_THC, value_THC = torch.split(key_value_THC, self._num_heads, dim=1)
        attended_SC = attend(
            len(self.layers) - 1,
            rotate(query_SNC, cos_T1C[wanted_S], sin_T1C[wanted_S]),
            rotate(key_THC, cos_T1C, sin_T1C),
            value_THC,
        )
        return layer.rest(hidden_TD[wanted_S], attended_SC)


class _Layer:
    """A decoder layer without its attention, over the model's submodules and weights."""

    def __init__(self, layer: DecoderLayer) -> None:
        self.input_layernorm = layer.input_layernorm
        self.qkv_proj = layer.self_attn.qkv_proj
        self._o_proj = layer.self_attn.o_proj
        self._post_attention_layernorm = layer.post_attention_layernorm
        self._mlp = layer.mlp

    def rest(self, hidden_TD: Tensor, attended_TC: Tensor) -> Tensor:
        """What follows attention: projection, and the MLP."""
        # Added and multiplied in place: on a CPU a new tensor costs more than its arithmetic.
        hidden_TD = self._o_proj(attended_TC).add_(hidden_TD)
        gate_TM, up_TM = self._mlp.gate_up_proj(self._post_attention_layernorm(hidden_TD)).chunk(2, dim=-1)
        mixed_TD: Tensor = self._mlp.down_proj(self._mlp.activation(gate_TM).mul_(up_TM))
        return mixed_TD.add_(hidden_TD)


class _LastProducts:
    """The last layer's queries, which few tokens need, and its keys and values, each by a product of its own."""

    def __init__(self, layer: DecoderLayer, packed_dtype: torch.dtype | None) -> None:
        attention, weight = layer.self_attn, layer.self_attn.qkv_proj.weight
        width = attention.num_heads * attention.head_dim
        self.query = Projection(weight[:width], packed_dtype=packed_dtype)
        self.key_value = Projection(weight[width:], packed_dtype=packed_dtype)
