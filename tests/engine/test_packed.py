"""The packed decoder and the engine's attention give the logits of the plain model."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ray_job.engine.attention import PackedAttention
from ray_job.engine.kv_cache import KVPool
from ray_job.engine.row import Chunk, Prompt, Row
from ray_job.engine.spans import Piece, Span
from ray_job.engine.varlen import Call, Kernel, VarlenAttention, fault, flash, plain
from ray_job.models.phi3_vision.packed import PackedPhi3Vision
from tests.engine.tiny import VOCAB, needs_flash, tiny_model

PREFIX = 70  # long enough that decoding rows read it as a group
LENGTHS = [PREFIX + 3, PREFIX + 9, PREFIX + 30, 5]


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("way", ["packed weights", "plain weights", "ragged kernel"])
@torch.inference_mode()
def test_prompts_in_chunks_and_decodes_together(kv_heads: int, window: int | None, way: str) -> None:
    """Three rows that share a prefix and one that does not: chunks of 25 tokens, then 4 tokens decoded together."""
    model = tiny_model(kv_heads=kv_heads, window=window)
    is_ragged = way == "ragged kernel" and window is None
    packed = PackedPhi3Vision(model, None if way == "packed weights" else 0)
    generator = torch.Generator().manual_seed(0)
    prefix = torch.randint(0, VOCAB, (PREFIX,), generator=generator).tolist()
    texts = [torch.randint(0, VOCAB, (length + 4,), generator=generator).tolist() for length in LENGTHS]
    texts = [[*prefix, *text[PREFIX:]] if len(text) > PREFIX else text for text in texts]
    rows = _rows(texts)
    pool = KVPool.of(packed, 600, tokens_first=is_ragged)

    def step(chunks: list[Chunk[Row]]) -> None:
        attention: PackedAttention | VarlenAttention
        if is_ragged:
            attention = VarlenAttention(pool, chunks, packed.layers, plain)
        else:
            attention = PackedAttention(pool, chunks, packed.layers)
        ordered = [chunks[index] for index in attention.order]
        ids = [token for chunk in ordered for token in texts[rows.index(chunk.row)][chunk.start : chunk.end]]
        positions = torch.tensor([[place for chunk in ordered for place in range(chunk.start, chunk.end)]])
        is_long = torch.zeros(len(ids), dtype=torch.bool)
        embeds = packed.embed(torch.tensor(ids))
        logits = packed.logits(packed.forward(embeds, positions, is_long, attention.wanted_S, attention))
        asked = [chunk for chunk in ordered if chunk.needs_logits]
        for chunk, logits_V in zip(asked, logits, strict=True):
            expected_V = _plain(model, texts[rows.index(chunk.row)][: chunk.end])
            torch.testing.assert_close(logits_V, expected_V, atol=2e-4, rtol=1e-4)

    for row in rows:
        for start, end in itertools.pairwise([*range(row.num_shared, row.num_tokens, 25), row.num_tokens]):
            step([Chunk(row, start, end)])
    for _ in range(4):
        for row in rows:
            row.num_tokens += 1
        step([Chunk(row, row.num_tokens - 1, row.num_tokens) for row in rows])


def _rows(texts: list[list[int]]) -> list[Row]:
    spans = [Span(start=150 * index, capacity=140) for index in range(len(texts))]
    rows = [
        Row(prompt=Prompt(text[:length], ()), num_tokens=length, max_tokens=length + 4, span=span)
        for text, length, span in zip(texts, LENGTHS, spans, strict=True)
    ]
    rows[1].shared = [Piece(spans[0], PREFIX)]
    rows[2].shared = [Piece(spans[0], PREFIX - 1)]
    return rows


def _plain(model: nn.Module, ids: list[int]) -> torch.Tensor:
    logits_1V: torch.Tensor = model(
        model.embed_row(torch.tensor(ids))[None],
        position_ids_BL=torch.arange(len(ids))[None],
        is_long_B=torch.tensor([False]),
        logits_to_keep=1,
    )
    return logits_1V[0, 0]


@pytest.mark.gpu
@needs_flash
@pytest.mark.parametrize("kv_heads", [32, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_flash_kernel_computes_what_it_is_documented_to(kv_heads: int, dtype: torch.dtype) -> None:
    assert fault(flash, kv_heads, 96, torch.device("cuda"), dtype) is None


Found = tuple[Tensor, Tensor]


def _ignores_where_keys_start(q: Tensor, k: Tensor, v: Tensor, call: Call, is_causal: bool) -> Found:
    return plain(q, k.nan_to_num(), v.nan_to_num(), replace(call, key_starts=call.key_starts * 0), is_causal)


def _reads_one_key_more(q: Tensor, k: Tensor, v: Tensor, call: Call, is_causal: bool) -> Found:
    return plain(q, k, v, replace(call, num_keys=call.num_keys + 1), is_causal)


def _sees_later_keys(q: Tensor, k: Tensor, v: Tensor, call: Call, is_causal: bool) -> Found:
    return plain(q, k, v, call, False)


def _turns_its_sums(q: Tensor, k: Tensor, v: Tensor, call: Call, is_causal: bool) -> Found:
    output_SND, lse_SN = plain(q, k, v, call, is_causal)
    return output_SND, lse_SN.T


def _lacks_an_argument(q: Tensor, k: Tensor, v: Tensor, call: Call, is_causal: bool) -> Found:
    raise TypeError("varlen_attn() got an unexpected keyword argument 'num_splits'")


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (_ignores_where_keys_start, "its output is not"),
        (_reads_one_key_more, "its output is not"),
        (_sees_later_keys, "its output is not"),
        (_turns_its_sums, "its log-sum-exp is not"),
        (_lacks_an_argument, "TypeError: .* 'num_splits'"),
    ],
)
def test_a_kernel_that_is_wrong_is_found_out(kernel: Kernel, message: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        wrong = fault(kernel, 4, 96, torch.device("cpu"), dtype)
        assert wrong is not None
        assert re.match(message, wrong)
        assert fault(plain, 4, 96, torch.device("cpu"), dtype) is None
