"""A vision-language model of transformers as the static engine's `PaddedModel`: the library's own `generate`.

Rows are padded on the left, and the library does the rest as it does for anybody: masks, positions, whatever cache the
model's layers need. It is told each next token. Every distinct picture is encoded once for a batch, by itself.

Shapes: B rows, L tokens of the longest, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ray_job.engine.collate import collate
from ray_job.engine.padded_model import NextTokens
from ray_job.models.auto.configuration import image_token_id
from ray_job.models.auto.normalization import Normalization
from ray_job.models.auto.padded_pictures import PictureInputs, num_features
from ray_job.rows import Picture, Sample

_TYPE_NAMES = ("mm_token_type_ids", "token_type_ids")
_WHOLE_PROMPT = {"paligemma"}  # whose token types say which tokens are the prompt, not which are pictures: none is 1


class PaddedAuto:
    """A library model as the engine's `PaddedModel`.

    Args:
        model: of `AutoModelForImageTextToText`, in evaluation mode, to which `why_not_padded` objects nothing; its
            generation_config is emptied, since a job's
            spec says how to generate.
        normalization: of pictures that come as whole numbers.
        max_len: longest row, prompt and answer.
        max_rows: rows that may run together; None: any number.
    """

    def __init__(self, model: Any, normalization: Normalization, *, max_len: int, max_rows: int | None = None) -> None:
        model.generation_config = _settings()
        self._model = model
        token_id = image_token_id(model.config)
        assert token_id is not None, "it has no token for the places of a picture"
        self._image_token_id = token_id
        self._arguments = frozenset(inspect.signature(model.forward).parameters)
        self._pictures = PictureInputs(model, normalization)
        self.max_len = max_len
        self.max_rows = max_rows

    def is_long(self, num_tokens: int) -> bool:
        """False: no row is ever run again for its length."""
        return False

    def encode_pictures(self, pictures: Sequence[Picture]) -> list[Any]:
        """The library's output for each."""
        return self._pictures.encode(pictures)

    def generate(self, samples: Sequence[Sample], encoded: Mapping[bytes, Any], next_tokens: NextTokens) -> None:
        """As `PaddedModel.generate`. Raises ValueError where a row's placeholders do not match its pictures."""
        device = self._model.device
        for sample in samples:  # the library only counts all rows' together
            _check_places(sample, encoded)
        batch = collate(samples, pad_id=0)
        ids_BL = batch.input_ids_BL.to(device)
        is_picture_BL = ids_BL < 0
        mentioned = [picture for sample in samples for picture in _mentioned(sample)]
        steps = _Steps(next_tokens)
        self._model.generate(
            input_ids=ids_BL.masked_fill(is_picture_BL, self._image_token_id),
            attention_mask=batch.attention_mask_BL.to(device, torch.int64),
            **{name: self._token_types(is_picture_BL) for name in _TYPE_NAMES if name in self._arguments},
            **self._pictures.inputs(mentioned, encoded),
            generation_config=_settings(max_new_tokens=1 + max(each.params.max_new_tokens for each in samples)),
            logits_processor=LogitsProcessorList([steps]),
            stopping_criteria=StoppingCriteriaList([_Over(steps)]),
        )

    def _token_types(self, is_picture_BL: Tensor) -> Tensor:
        types_BL = is_picture_BL.to(torch.int64)
        return torch.zeros_like(types_BL) if self._model.config.model_type in _WHOLE_PROMPT else types_BL


class _Steps(LogitsProcessor):
    """Asks for each row's next token, and leaves the library no other choice."""

    def __init__(self, next_tokens: NextTokens) -> None:
        self._next_tokens = next_tokens
        self.is_over = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = None if self.is_over else self._next_tokens(scores.float())
        if tokens is None:
            self.is_over = True
            return scores
        chosen_B1 = torch.tensor(tokens, device=scores.device)[:, None]
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen_B1, 0.0)


class _Over(StoppingCriteria):
    """Ends all rows once no token came."""

    def __init__(self, steps: _Steps) -> None:
        self._steps = steps

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **_: Any) -> Tensor:
        return torch.full(input_ids.shape[:1], self._steps.is_over, device=input_ids.device)


def _check_places(sample: Sample, encoded: Mapping[bytes, Any]) -> None:
    counts = Counter(token for token in sample.input_ids if token < 0)
    found = {-token: count for token, count in counts.items()}
    expected = {number: num_features(encoded[each.digest]) for number, each in enumerate(sample.pictures, 1)}
    if found != expected:
        raise ValueError(f"placeholders by picture {found} do not match the features' lengths {expected}")


def _settings(**own: Any) -> Any:
    """How the library shall generate: greedily, and with none of the checkpoint's own habits."""
    config: Any = GenerationConfig
    return config(do_sample=False, num_beams=1, pad_token_id=0, **own)


def _mentioned(sample: Sample) -> list[Picture]:
    """A row's pictures in the order of their placeholders."""
    return [sample.pictures[-token - 1] for token in dict.fromkeys(sample.input_ids) if token < 0]
