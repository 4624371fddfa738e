"""A model's logits for a few rows packed side by side, against the library's own for each row alone.

It notices what no configuration tells: another order of layers, scores or positions of its own, rows that touch each
other, pictures that are not where the library puts them. It runs once, when a model is loaded.

Shapes: T packed tokens of all rows, S of them the last of a row, L tokens of a row, N query heads, H key/value heads,
C head_dim, V vocabulary.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ray_job.engine.packed_model import AttentionLayer, PromptLayout
from ray_job.models.auto.packed import PackedAuto
from ray_job.models.auto.unfit import Unfit
from ray_job.rows import Sample

_WINDOW = 5  # tokens, of layers that have a window, while they are probed: their own is longer than any row here
_TOLERANCE = 1e-3  # of the largest logit, in float32
_TOLERANCE_16_BITS = 0.05


@torch.inference_mode()
def check_answers(packed: PackedAuto, model: Any, samples: Sequence[Sample]) -> None:
    """Raises Unfit unless the packed rows' logits are the library's."""
    assert any(sample.pictures for sample in samples), "pictures are half of what can go wrong"
    # Not within a block: of a block that is longer than a window, the library's families see different parts.
    window = max([_WINDOW, *(end - start for sample in samples for start, end in _layout(packed, sample).blocks)])
    with _short_windows(model, window):
        ours_SV = packed_logits(packed, samples, window)
        with packed.released():
            library_SV = torch.stack([library_logits(packed, model, sample) for sample in samples])
    worst = float(((ours_SV - library_SV).abs().amax(1) / library_SV.abs().amax(1)).max())
    tolerance = _TOLERANCE if packed.dtype == torch.float32 else _TOLERANCE_16_BITS
    if not worst <= tolerance:  # nor is it where any is no number
        raise Unfit(f"its logits differ from the library's by {worst:.2g} of the largest; {tolerance} is allowed")


def packed_logits(packed: PackedAuto, samples: Sequence[Sample], window: int | None = None) -> Tensor:
    """float32 (S, V) for the next token of each row, all of them in one call.

    Layers with a window have one of `window` tokens, the query itself counted, if their own is not shorter.
    """
    device = packed.device
    layouts = [_layout(packed, sample) for sample in samples]
    embeds = [
        packed.embed(torch.tensor(sample.input_ids), packed.encode_pictures(sample.pictures)) for sample in samples
    ]
    positions_AT = torch.from_numpy(np.concatenate([layout.positions_AL for layout in layouts], axis=1)).to(device)
    wanted_S = torch.tensor([len(sample.input_ids) for sample in samples], device=device).cumsum(0) - 1
    is_long_T = torch.zeros(positions_AT.shape[1], dtype=torch.bool, device=device)

    def attend(layer: int, query_TNC: Tensor, key_THC: Tensor, value_THC: Tensor) -> Tensor:
        own = packed.layers[layer].sliding_window
        shorter = own if own is None or window is None else min(own, window - 1)
        mask_TT = _mask(layouts, shorter).to(device)
        return _attention(packed.layers[layer], query_TNC, key_THC, value_THC, mask_TT)

    return packed.logits(packed.forward(torch.cat(embeds), positions_AT, is_long_T, wanted_S, attend))


def library_logits(packed: PackedAuto, model: Any, sample: Sample) -> Tensor:
    """float32 (V,) for the next token of one row, by the library's own attention, masks and positions."""
    ids_L = torch.tensor(sample.input_ids)
    token_ids_1L = torch.where(ids_L < 0, model.config.image_token_id, ids_L)[None].to(packed.device)
    inputs = {"input_ids": token_ids_1L, "attention_mask": torch.ones_like(token_ids_1L)}
    known = inspect.signature(model.forward).parameters
    types_1L = torch.from_numpy(packed.token_types(ids_L.numpy()))[None].to(packed.device)
    inputs |= {name: types_1L for name in ("token_type_ids", "mm_token_type_ids") if name in known}
    if sample.pictures:
        inputs |= packed.image_arrays(sample.pictures)
    logits_V: Tensor = model(**inputs, use_cache=False).logits[0, -1].float()
    return logits_V


@contextmanager
def _short_windows(model: Any, window: int) -> Iterator[None]:
    """Lets the library make the masks of layers that have a window as if it were of so many tokens."""
    text = model.get_decoder().config
    own = getattr(text, "sliding_window", None)
    if own is None:
        yield
        return
    text.sliding_window = min(own, window)
    try:
        yield
    finally:
        text.sliding_window = own


def _layout(packed: PackedAuto, sample: Sample) -> PromptLayout:
    return packed.layout(np.asarray(sample.input_ids, dtype=np.int32), sample.pictures)


def _mask(layouts: Sequence[PromptLayout], sliding_window: int | None) -> Tensor:
    """bool (T, T): which keys each query sees, those of its own row alone."""
    blocks = []
    for layout in layouts:
        num_tokens = layout.positions_AL.shape[1]
        first_L, last_L = layout.seen(0, num_tokens, sliding_window)
        order_L = np.arange(num_tokens)
        blocks.append(torch.from_numpy((order_L >= first_L[:, None]) & (order_L <= last_L[:, None])))
    lengths = [len(block) for block in blocks]
    mask_TT = torch.zeros(sum(lengths), sum(lengths), dtype=torch.bool)
    for end, block in zip(itertools.accumulate(lengths), blocks, strict=True):
        mask_TT[end - len(block) : end, end - len(block) : end] = block
    return mask_TT


def _attention(layer: AttentionLayer, query_TNC: Tensor, key_THC: Tensor, value_THC: Tensor, mask_TT: Tensor) -> Tensor:
    """(T, N · C), by the definition."""
    num_queries = query_TNC.shape[1] // layer.num_heads
    key_TNC, value_TNC = (each.repeat_interleave(num_queries, dim=1) for each in (key_THC, value_THC))
    scores_NTT = torch.einsum("snc,tnc->nst", query_TNC.float(), key_TNC.float()) * layer.head_dim**-0.5
    if layer.softcap is not None:
        scores_NTT = layer.softcap * torch.tanh(scores_NTT / layer.softcap)
    weights_NTT = scores_NTT.masked_fill(~mask_TT, float("-inf")).softmax(-1)
    return torch.einsum("nst,tnc->snc", weights_NTT, value_TNC.float()).flatten(1).to(query_TNC.dtype)
