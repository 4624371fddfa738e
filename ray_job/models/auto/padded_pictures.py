"""Pictures of a padded batch as the library's models take them: features that were made of each before.

Shapes: P pictures.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ray_job.models.auto import pictures as prepared
from ray_job.models.auto.normalization import Normalization
from ray_job.models.casting import computing_dtype
from ray_job.rows import Picture

FEATURES = "mm_encoder_outputs"
_LAYERS = "deepstack_features"  # by layer, each of all pictures
_FOR_ENCODER = "pixel_"  # how arguments that only an encoder reads begin
_DIAGNOSTICS = ("hidden_states", "attentions")  # of the tower's own layers; the decoder reads none of them


class PictureInputs:
    """What a model's `generate` is given of pictures."""

    def __init__(self, model: Any, normalization: Normalization) -> None:
        self._model = model
        self._normalization = normalization
        self._dtype = computing_dtype(model)
        self._arguments = frozenset(inspect.signature(model.forward).parameters)
        self._encode = model.base_model.get_image_features
        self._encoder_arguments = frozenset(inspect.signature(self._encode).parameters)

    def encode(self, pictures: Sequence[Picture]) -> list[Any]:
        """The library's output for each picture by itself: its features do not depend on others beside it."""
        return [self._encode(**self._joined([each], self._encoder_arguments), return_dict=True) for each in pictures]

    def inputs(self, pictures: Sequence[Picture], encoded: Mapping[bytes, Any]) -> dict[str, Any]:
        """Arguments for pictures in the order of their places in the batch, with what `encode` made of each.

        Raises:
            ValueError: features of a kind that cannot be joined.
        """
        if not pictures:
            return {}
        others = frozenset(name for name in self._arguments if not name.startswith(_FOR_ENCODER))
        beside = self._joined(pictures, others)  # such as their sizes in patches, which positions follow from
        return {**beside, FEATURES: {"image": _join_outputs([encoded[picture.digest] for picture in pictures])}}

    def _joined(self, pictures: Sequence[Picture], names: frozenset[str]) -> dict[str, Tensor]:
        return prepared.joined(pictures, names, self._normalization, self._model.device, self._dtype)


def num_features(output: Any) -> int:
    """Places that a picture's features take, by the library's output for it."""
    features = output.get("pooler_output")
    features = output.last_hidden_state if features is None else features
    parts = [features] if isinstance(features, Tensor) else features
    return sum(part.numel() // part.shape[-1] for part in parts)


def _join_outputs(outputs: Sequence[Any]) -> Any:
    """Several pictures' outputs as the library would have made them in one call, as far as a decoder reads them.

    Raises:
        ValueError: a field holds something else than tensors.
    """
    first = outputs[0]
    if len(outputs) == 1:
        return first
    fields = {}
    for name in first.keys():  # noqa: SIM118 - its iterator is another
        values = [output[name] for output in outputs]
        if name in _DIAGNOSTICS:
            continue
        fields[name] = [_join(list(layer)) for layer in zip(*values, strict=True)] if name == _LAYERS else _join(values)
    return type(first)(**fields)


def _join(values: list[Any]) -> Any:
    """Tensors along axis 0, or as (tokens, width) where their other axes differ; sequences end to end."""
    if all(isinstance(value, list | tuple) for value in values):
        return [item for value in values for item in value]
    if not all(isinstance(value, Tensor) for value in values):
        raise ValueError(f"features of several pictures cannot be joined: {type(values[0]).__name__}")
    is_alike = len({value.shape[1:] for value in values}) == 1
    return torch.cat(values if is_alike else [prepared.flat(value) for value in values])
