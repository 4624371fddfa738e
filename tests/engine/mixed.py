"""A decoder whose layers all attend differently, with three axes of positions and blocks, and its dense reference.

Shapes: T packed tokens, S of them wanted, L tokens of one row, A axes of positions, D width, W = 2 · D of embeddings,
N query heads, H key/value heads, C head_dim, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ray_job.engine.packed_model import Attend, AttentionLayer, PromptLayout
from ray_job.rows import Picture, Sample

VOCAB = 50
WIDTH = 24
MIXED = (
    AttentionLayer(num_heads=2, head_dim=8, sliding_window=3),
    AttentionLayer(num_heads=1, head_dim=12),
    AttentionLayer(num_heads=3, head_dim=4, softcap=0.8),
    AttentionLayer(num_heads=2, head_dim=6),
    AttentionLayer(num_heads=2, head_dim=8, sliding_window=7, softcap=1.5),
)
OPEN = (
    AttentionLayer(num_heads=2, head_dim=8),
    AttentionLayer(num_heads=1, head_dim=12, sliding_window=80),
    AttentionLayer(num_heads=2, head_dim=6),
)
"""What a ragged kernel can run, for rows that are not too long."""
Blocks = Literal["pictures", "prompt", "none"]


class MixedModel:
    """A `PackedModel` in plain torch with random weights. Features are wider than D: their second half is added to
    what the first layer gives.

    Args:
        layers: of attention.
        blocks: which tokens of a prompt see one another: each picture's, all, or none.
        switch: rows of more tokens turn faster.
    """

    num_axes = 3
    max_len = 400
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(
        self, layers: Sequence[AttentionLayer] = MIXED, blocks: Blocks = "pictures", switch: int = 400
    ) -> None:
        self.layers: Sequence[AttentionLayer] = layers
        self.blocks = blocks
        self.switch = switch
        generator = torch.Generator().manual_seed(3)

        def weight(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=generator) / columns**0.5

        self._embedding_VD = torch.randn(VOCAB, WIDTH, generator=generator)
        self._query = [weight(2 * layer.num_heads * layer.head_dim, WIDTH) * 2 for layer in layers]
        self._key = [weight(layer.num_heads * layer.head_dim, WIDTH) * 2 for layer in layers]
        self._value = [weight(layer.num_heads * layer.head_dim, WIDTH) for layer in layers]
        self._output = [weight(WIDTH, 2 * layer.num_heads * layer.head_dim) for layer in layers]
        self._head_VD = weight(VOCAB, WIDTH)

    def is_long(self, num_tokens: int) -> bool:
        return num_tokens > self.switch

    def num_crops(self, picture: Picture) -> int:
        return 1

    def encode_pictures(self, pictures: Sequence[Picture], max_crops: int | None = None) -> list[Tensor]:
        return [torch.from_numpy(picture.arrays["patches"]).flatten(0, 1) for picture in pictures]

    def layout(self, ids_L: npt.NDArray[np.int32], pictures: Sequence[Picture]) -> PromptLayout:
        """A picture's patches stand at one time, row by row and column by column; text goes on after the larger."""
        pieces, blocks, index, position = [], [], 0, 0
        while index < len(ids_L):
            if ids_L[index] >= 0:
                pieces.append(np.full((3, 1), position))
                index, position = index + 1, position + 1
                continue
            rows, columns = pictures[-int(ids_L[index]) - 1].arrays["patches"].shape[:2]
            pieces.append(
                position + np.stack([np.zeros((rows, columns), int), *np.indices((rows, columns))]).reshape(3, -1)
            )
            blocks.append((index, index + rows * columns))
            index, position = index + rows * columns, position + max(rows, columns)
        every = {"pictures": tuple(blocks), "prompt": ((0, len(ids_L)),), "none": ()}
        return PromptLayout(np.concatenate(pieces, axis=1), position - len(ids_L), every[self.blocks])

    def embed(self, input_ids_L: Tensor, features: Sequence[Tensor] = ()) -> Tensor:
        embeds_LW = self.embed_tokens(input_ids_L.clamp_min(0))
        for number, features_LW in enumerate(features, start=1):
            embeds_LW[input_ids_L == -number] = features_LW
        return embeds_LW

    def embed_tokens(self, ids_T: Tensor) -> Tensor:
        return F.pad(self._embedding_VD[ids_T], (0, WIDTH))

    def forward(
        self, embeds_TW: Tensor, positions_AT: Tensor, is_long_T: Tensor, wanted_S: Tensor, attend: Attend
    ) -> Tensor:
        hidden_TD, deep_TD = embeds_TW.split(WIDTH, dim=-1)
        for index, layer in enumerate(self.layers):
            normed_TD = F.rms_norm(hidden_TD, (WIDTH,))
            key_THC = (normed_TD @ self._key[index].T).unflatten(1, (layer.num_heads, layer.head_dim))
            value_THC = (normed_TD @ self._value[index].T).unflatten(1, (layer.num_heads, layer.head_dim))
            query_TNC = (normed_TD @ self._query[index].T).unflatten(1, (2 * layer.num_heads, layer.head_dim))
            query_TNC = _turned(query_TNC, positions_AT, is_long_T)
            key_THC = _turned(key_THC, positions_AT, is_long_T)
            if index == len(self.layers) - 1:
                query_TNC, hidden_TD, deep_TD = query_TNC[wanted_S], hidden_TD[wanted_S], deep_TD[wanted_S]
            hidden_TD = hidden_TD + attend(index, query_TNC, key_THC, value_THC) @ self._output[index].T
            if index == 0:
                hidden_TD = hidden_TD + deep_TD
        return hidden_TD

    def logits(self, hidden_SD: Tensor) -> Tensor:
        return F.rms_norm(hidden_SD, (WIDTH,)) @ self._head_VD.T


def _turned(x_THC: Tensor, positions_AT: Tensor, is_long_T: Tensor) -> Tensor:
    """Rotary embedding; pair p of channels turns with the position on axis p modulo 3."""
    pairs = x_THC.shape[-1] // 2
    angles_TP = torch.stack(
        [positions_AT[pair % 3] * 0.7**pair * torch.where(is_long_T, 1.3, 1.0) for pair in range(pairs)], dim=1
    )
    turned_THP = torch.view_as_complex(x_THC.unflatten(-1, (pairs, 2)).contiguous())
    turned_THP = turned_THP * torch.polar(torch.ones_like(angles_TP), angles_TP)[:, None]
    return torch.view_as_real(turned_THP).flatten(-2)


@torch.inference_mode()
def dense(model: MixedModel, sample: Sample) -> list[int]:
    """Greedy answer of one row alone: all its tokens computed anew for each next one, under masks written out."""
    ids_L = np.array(sample.input_ids, dtype=np.int32)
    layout = model.layout(ids_L, sample.pictures)
    prompt_LW = model.embed(torch.from_numpy(ids_L).long(), model.encode_pictures(sample.pictures))
    answer: list[int] = []
    while len(answer) < sample.params.max_new_tokens:
        embeds_LW = torch.cat([prompt_LW, model.embed_tokens(torch.tensor(answer, dtype=torch.int64))])
        length = len(embeds_LW)
        later_AL = torch.arange(len(ids_L), length).expand(3, -1) + layout.offset
        positions_AL = torch.cat([torch.from_numpy(layout.positions_AL), later_AL], dim=1)
        is_long_L = torch.full((length,), model.is_long(length))
        attend = _Dense(model.layers, layout.blocks, length)
        hidden_1D = model.forward(embeds_LW, positions_AL, is_long_L, torch.tensor([length - 1]), attend)
        answer.append(int(model.logits(hidden_1D)[0].argmax()))
    return answer


@dataclasses.dataclass
class _Dense:
    layers: Sequence[AttentionLayer]
    blocks: Sequence[tuple[int, int]]
    length: int

    def __call__(self, index: int, query_SNC: Tensor, key_LHC: Tensor, value_LHC: Tensor) -> Tensor:
        layer = self.layers[index]
        query_L1, key_1L = torch.arange(self.length)[:, None], torch.arange(self.length)[None]
        mask_LL = key_1L <= query_L1
        if layer.sliding_window is not None:
            mask_LL &= query_L1 - key_1L <= layer.sliding_window
        for start, end in self.blocks:
            mask_LL[start:end, start:end] = True
        repeats = query_SNC.shape[1] // key_LHC.shape[1]
        key_NLC = key_LHC.repeat_interleave(repeats, dim=1).transpose(0, 1)
        value_NLC = value_LHC.repeat_interleave(repeats, dim=1).transpose(0, 1)
        scores_NSL = query_SNC.transpose(0, 1) @ key_NLC.transpose(1, 2) / layer.head_dim**0.5
        if layer.softcap is not None:
            scores_NSL = layer.softcap * torch.tanh(scores_NSL / layer.softcap)
        scores_NSL = scores_NSL.masked_fill(~mask_LL[-len(query_SNC) :], -torch.inf)
        return (scores_NSL.softmax(-1) @ value_NLC).transpose(0, 1).flatten(1)
