"""A model's logits for a few rows packed side by side, against the library's own for each row alone.

It notices what no configuration tells: another order of layers, scores or positions of its own, rows that touch each
other, pictures that are not where the library puts them. It runs once, when a model is loaded. Rows are run in two
steps, as the engine does: their prompts, then the first tokens of an answer, in another order, over what is stored.

Shapes: T packed tokens of all rows, S of them the last of a row, L tokens of a row, K keys that are stored of it,
A axes of positions, N query heads, H key/value heads, C head_dim, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ray_job.engine.packed_model import AttentionLayer, PromptLayout
from ray_job.models.auto.packed import PackedAuto
from ray_job.models.auto.unfit import Unfit
from ray_job.rows import Sample

_WINDOW = 5  # tokens, of layers that have a window, while they are probed: their own is longer than any row here
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.05}  # of a row's largest logit
_MAX_TOLERANCE = 0.15
_EAGER = "eager"  # what the library calls attention written out


@torch.inference_mode()
def check_answers(packed: PackedAuto, model: Any, samples: Sequence[Sample]) -> None:
    """Raises Unfit unless the packed rows' logits are the library's."""
    assert any(sample.pictures for sample in samples), "pictures are half of what can go wrong"
    # Not within a block: of a block that is longer than a window, the library's families see different parts.
    prompts = [(np.asarray(sample.input_ids, dtype=np.int32), sample.pictures) for sample in samples]
    window = max([_WINDOW, *(end - start for prompt in prompts for start, end in packed.layout(*prompt).blocks)])
    with _short_windows(model, window):
        ours_SV = packed_logits(packed, samples, window)
        with packed.released():
            library_SV = _library_logits(packed, model, samples)
        difference = _difference(ours_SV, library_SV)
        tolerance = _TOLERANCES[packed.dtype]
        if difference > tolerance and packed.dtype != torch.float32:
            # Rounding adds up over many layers: as much as between two ways of the library's own, some times over.
            with packed.released(_EAGER):
                rounding = _difference(_library_logits(packed, model, samples), library_SV)
            tolerance = min(max(tolerance, 3 * rounding), _MAX_TOLERANCE)
    if not difference <= tolerance:  # nor is it where any is no number
        raise Unfit(
            f"its logits differ from the library's by {difference:.2g} of the largest, not {tolerance:.2g} or less"
        )


def packed_logits(packed: PackedAuto, samples: Sequence[Sample], window: int | None = None) -> Tensor:
    """float32 (2 · S, V) for the token that follows each prompt, then each beginning of an answer.

    Layers with a window have one of `window` tokens, the query itself counted, if their own is not shorter.
    """
    rows = [
        _Row(sample, packed.layout(np.asarray(sample.input_ids, dtype=np.int32), sample.pictures)) for sample in samples
    ]
    prompts_SV = _step(packed, rows, window, [(0, len(row.sample.input_ids)) for row in rows])
    rows.reverse()
    answers_SV = _step(packed, rows, window, [(len(row.sample.input_ids), len(row.ids)) for row in rows])
    return torch.cat((prompts_SV, answers_SV.flip(0)))


def library_logits(packed: PackedAuto, model: Any, sample: Sample) -> Tensor:
    """float32 (2, V), of one row by the library's own attention, masks and positions."""
    ids = _with_answer(sample)
    ids_L = np.asarray(ids, dtype=np.int32)
    token_ids_1L = torch.tensor([[model.config.image_token_id if token < 0 else token for token in ids]])
    types_1L = torch.from_numpy(packed.token_types(ids_L, len(sample.input_ids)))[None]
    known = inspect.signature(model.forward).parameters
    inputs = {"input_ids": token_ids_1L, "attention_mask": torch.ones_like(token_ids_1L)}
    inputs |= {name: types_1L for name in ("token_type_ids", "mm_token_type_ids") if name in known}
    inputs = {name: tensor.to(packed.device) for name, tensor in inputs.items()}
    if sample.pictures:
        inputs |= packed.image_arrays(sample.pictures)
    logits_LV: Tensor = model(**inputs, use_cache=False).logits[0]
    return logits_LV[[len(sample.input_ids) - 1, -1]].float()


class _Row:
    """A row of the probe, and its keys and values by layer."""

    def __init__(self, sample: Sample, layout: PromptLayout) -> None:
        self.sample = sample
        self.layout = layout
        self.ids = _with_answer(sample)
        self._stored: dict[int, tuple[Tensor, Tensor]] = {}

    def embeds(self, packed: PackedAuto, start: int, end: int) -> Tensor:
        """(L, W) of tokens `start` to `end`: of the prompt, or of none of it."""
        features = packed.encode_pictures(self.sample.pictures) if start == 0 else []
        return packed.embed(torch.tensor(self.ids[start:end]), features)

    def attend(self, layer: int, how: AttentionLayer, query_LNC: Tensor, key_LHC: Tensor, value_LHC: Tensor) -> Tensor:
        """Of the row's next tokens over all up to them → (L, N · C)."""
        if layer in self._stored:
            key_LHC, value_LHC = map(torch.cat, zip(self._stored[layer], (key_LHC, value_LHC), strict=True))
        self._stored[layer] = key_LHC, value_LHC
        end, order_K = len(key_LHC), np.arange(len(key_LHC))
        first_L, last_L = self.layout.seen(end - len(query_LNC), end, how.sliding_window)
        mask_LK = torch.from_numpy((order_K >= first_L[:, None]) & (order_K <= last_L[:, None]))
        return _attention(how, query_LNC, key_LHC, value_LHC, mask_LK.to(query_LNC.device))


def _with_answer(sample: Sample) -> list[int]:
    """A prompt's ids and a few of an answer: tokens of the prompt's text, one more than its pictures."""
    text = [token for token in sample.input_ids if token >= 0]
    return [*sample.input_ids, *text[-1 - len(sample.pictures) :]]


def _step(packed: PackedAuto, rows: Sequence[_Row], window: int | None, ranges: Sequence[tuple[int, int]]) -> Tensor:
    """float32 (S, V) for the token that follows each row's range; all of them in one call."""
    device = packed.device
    lengths = [end - start for start, end in ranges]
    chunks = list(zip(rows, ranges, strict=True))
    positions_AT = torch.from_numpy(np.concatenate([row.layout.positions(*each) for row, each in chunks], axis=1))

    def attend(layer: int, query_TNC: Tensor, key_THC: Tensor, value_THC: Tensor) -> Tensor:
        how = packed.layers[layer]
        if how.sliding_window is not None and window is not None:
            how = replace(how, sliding_window=min(how.sliding_window, window - 1))
        each = zip(rows, *(torch.split(tensor, lengths) for tensor in (query_TNC, key_THC, value_THC)), strict=True)
        return torch.cat([row.attend(layer, how, *tensors) for row, *tensors in each])

    hidden_SD = packed.forward(
        torch.cat([row.embeds(packed, *each) for row, each in chunks]),
        positions_AT.to(device),
        torch.zeros(sum(lengths), dtype=torch.bool, device=device),
        torch.tensor(lengths, device=device).cumsum(0) - 1,
        attend,
    )
    return packed.logits(hidden_SD)


def _library_logits(packed: PackedAuto, model: Any, samples: Sequence[Sample]) -> Tensor:
    prompts_and_answers = [library_logits(packed, model, sample) for sample in samples]
    return torch.stack(prompts_and_answers, dim=1).flatten(0, 1)


def _difference(found_SV: Tensor, expected_SV: Tensor) -> float:
    """The largest difference of any row's logits, of the row's largest logit."""
    return float(((found_SV - expected_SV).abs().amax(1) / expected_SV.abs().amax(1)).max())


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


def _attention(how: AttentionLayer, query_LNC: Tensor, key_KHC: Tensor, value_KHC: Tensor, mask_LK: Tensor) -> Tensor:
    """(L, N · C), by the definition."""
    num_queries = query_LNC.shape[1] // how.num_heads
    key_KNC, value_KNC = (each.float().repeat_interleave(num_queries, dim=1) for each in (key_KHC, value_KHC))
    scores_NLK = torch.einsum("lnc,knc->nlk", query_LNC.float(), key_KNC) * how.head_dim**-0.5
    if how.softcap is not None:
        scores_NLK = how.softcap * torch.tanh(scores_NLK / how.softcap)
    weights_NLK = scores_NLK.masked_fill(~mask_LK, float("-inf")).softmax(-1)
    return torch.einsum("nlk,knc->lnc", weights_NLK, value_KNC).flatten(1).to(query_LNC.dtype)
