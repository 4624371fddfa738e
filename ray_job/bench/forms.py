"""A form for each row of a benchmark, and a tokenizer of full size where there is no checkpoint to have one."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as token_models

from ray_job.engine.interface import Vocabulary
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor
from ray_job.rows import Sample
from ray_job.spec import StructuredOutputs
from ray_job.structured.matchers import TokenizerForms

_RECORD = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue", "yellow"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "sentence": {"type": "string", "maxLength": 80},
    },
    "required": ["colour", "count", "sentence"],
    "additionalProperties": False,
}
FORMS = {
    "texts": StructuredOutputs(json={"type": "array", "items": {"type": "string"}, "minItems": 1000}),
    "records": StructuredOutputs(json={"type": "array", "items": _RECORD, "minItems": 1000}),
}
"""Lists without end: whatever the weights, an answer goes on to its limit, as it does without a form. In texts the
model is asked for nearly every token; of records most are forced."""


def with_form(samples: Sequence[Sample], name: str) -> list[Sample]:
    """The same rows, each answer in this form."""
    update = {"structured_outputs": FORMS[name]}
    return [replace(sample, params=sample.params.model_copy(update=update)) for sample in samples]


def vocabulary_with_forms(checkpoint: Path | None, num_ids: int) -> Vocabulary:
    """Of a model with so many ids: by the checkpoint's tokenizer, or by one learned from Python's own library."""
    if checkpoint is not None:
        processor = Phi3VisionProcessor.from_pretrained(checkpoint)
        text = (checkpoint / "tokenizer.json").read_text(encoding="utf-8")
        forms = TokenizerForms(lambda: text, num_ids, processor.stop_ids, processor.decode)
    else:
        tokenizer = _learned(num_ids)
        end: Any = tokenizer.token_to_id("<|end|>")
        forms = TokenizerForms(tokenizer.to_str, num_ids, [end], lambda ids: str(tokenizer.decode(list(ids))))
    forms.load(FORMS["texts"])
    return Vocabulary(pad_id=0, stop_ids=frozenset(), detokenize=lambda ids: "", forms=forms)


def _learned(num_ids: int) -> Tokenizer:
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_ids,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "<|end|>"],
        show_progress=False,
    )
    tokenizer.train([str(path) for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))], trainer)
    return tokenizer
