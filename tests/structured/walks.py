"""Answers made by choosing at random among the tokens that a form allows, for tokenizers of several kinds."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import ray_job
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor
from ray_job.spec import StructuredOutputs
from ray_job.structured.matchers import FormMatcher, TokenizerForms
from tests.models.auto.chat_tokenizers import EOS, EOS_ID, tokenizer

DEMO = Path(ray_job.__file__).parent / "demo" / "model"
KINDS = ("demo", "llama", "gemma", "bytes", "metaspace")
STRIPPING = ("demo", "llama", "metaspace")
END = "<|im_end|>"
BEYOND = 70  # ids of the model that its tokenizer does not have


@dataclass(frozen=True)
class Model:
    """What a walk needs of a model."""

    forms: TokenizerForms
    decode: Callable[[Sequence[int]], str]
    stop_ids: frozenset[int]
    num_known: int  # ids of the tokenizer
    tokenizer: Tokenizer


@functools.cache
def model(kind: str) -> Model:
    if kind == "demo":
        processor = Phi3VisionProcessor.from_pretrained(DEMO)
        whole = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
        return _model(whole, processor.decode, processor.stop_ids)
    whole = _metaspace() if kind == "metaspace" else tokenizer(kind, [END, "<image>"]).backend_tokenizer
    end = whole.token_to_id(END)
    return _model(whole, lambda ids: whole.decode(list(ids), skip_special_tokens=True), (end, EOS_ID))


def _model(whole: Tokenizer, decode: Callable[[Sequence[int]], str], stop_ids: Sequence[int]) -> Model:
    known = max(whole.get_vocab(with_added_tokens=True).values()) + 1
    forms = TokenizerForms(whole.to_str, known + BEYOND, stop_ids, decode, threads=2)
    return Model(forms, decode, frozenset(stop_ids), known, whole)


def _metaspace() -> Tokenizer:
    """Of which the first token loses all its spaces."""
    content = tokenizer("llama", [END, "<image>"]).backend_tokenizer
    vocab = dict(content.get_vocab(with_added_tokens=False))
    for token in ("▁▁", "▁▁▁", "a▁b"):
        vocab[token] = len(vocab)
    made = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "▁"), ("▁▁", "▁")], byte_fallback=True, unk_token="<unk>"))
    made.add_special_tokens([EOS, "<s>", "<pad>", "<unk>", END])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return made


def allowed(forms: TokenizerForms, matcher: FormMatcher) -> list[int]:
    """Ids that may come next."""
    masks_BW = np.full((1, forms.num_words), -1, np.int32)
    forms.fill_masks([matcher], masks_BW)
    return [int(i) for i in np.flatnonzero(np.unpackbits(masks_BW.view(np.uint8), bitorder="little"))]


def walk(kind: str, rng: random.Random, max_tokens: int = 400, **form: Any) -> tuple[list[int], str | None]:
    """An answer's ids, and its text where it came to its end."""
    own = model(kind)
    matcher = own.forms.matcher(StructuredOutputs.model_validate(form), max_tokens)
    ids: list[int] = []
    while len(ids) < max_tokens:
        forced = matcher.forced_ids()
        for token_id in forced:
            matcher.take(token_id)
        ids += forced
        if forced and not matcher.is_complete:
            continue
        if matcher.is_complete:
            return ids, own.decode(ids)
        chosen = rng.choice(allowed(own.forms, matcher))
        matcher.take(chosen)
        if chosen in own.stop_ids:
            return ids, own.decode(ids)
        ids.append(chosen)
    return ids, own.decode(ids) if matcher.is_complete else None
