"""How a decoder's layers attend, read off a run of them rather than off the many spellings of configurations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ray_job.engine.packed_model import AttentionLayer
from ray_job.models.auto.attention import AttendLayer
from ray_job.models.auto.unfit import Unfit

# What the library may tell its attention that changes nothing here: there is no dropout when a model answers, positions
# are in queries and keys already, and the rest concerns other parts of a call.
_HARMLESS = {
    "cache",
    "dropout",
    "is_causal",
    "logits_to_keep",
    "output_attentions",
    "output_router_logits",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "use_cache",
}
_UNDERSTOOD = {"scaling", "softcap", "sliding_window"}
_REASONS = {
    "s_aux": "its attention has sinks",
    "position_bias": "it adds a bias for positions to attention scores",
    "indices": "each of its queries chooses the keys that it sees",
}


@dataclass(frozen=True, slots=True)
class InspectedLayer:
    """One layer's attention, and a factor of its queries, with which the engine scales scores as the model does."""

    attention: AttentionLayer
    query_scale: float


@torch.inference_mode()
def inspect_layers(run: Callable[[AttendLayer], object]) -> list[InspectedLayer]:
    """The layers in order, of a decoder that `run` runs over a token or two.

    Raises:
        Unfit: a layer attends in a way that the engine does not know, or layers do not attend once each, in order.
    """
    layers: list[InspectedLayer] = []

    def attend(layer: int, query_TNC: Tensor, key_THC: Tensor, value_THC: Tensor, settings: dict[str, Any]) -> Tensor:
        if layer != len(layers):
            raise Unfit(f"its layer {layer} attends where layer {len(layers)} is due")
        layers.append(_inspected(query_TNC, key_THC, value_THC, settings))
        return torch.zeros_like(query_TNC).flatten(1)

    run(attend)
    if not layers:
        raise Unfit("its decoder does not use the library's attention functions")
    return layers


def _inspected(query_TNC: Tensor, key_THC: Tensor, value_THC: Tensor, settings: dict[str, Any]) -> InspectedLayer:
    odd = [name for name, value in settings.items() if value is not None and name not in _HARMLESS | _UNDERSTOOD]
    if odd:
        raise Unfit(next((_REASONS[name] for name in odd if name in _REASONS), f"its attention takes {odd[0]!r}"))
    if key_THC.shape != value_THC.shape or key_THC.shape[0] != query_TNC.shape[0]:
        raise Unfit(f"its keys and values differ in shape, {tuple(key_THC.shape)} and {tuple(value_THC.shape)}")
    num_heads, head_dim = key_THC.shape[1:]
    window = settings.get("sliding_window")
    # The library's window counts the query itself, the engine's does not.
    attention = AttentionLayer(num_heads, head_dim, window - 1 if window else None, settings.get("softcap"))
    scaling = settings.get("scaling")
    default = head_dim**-0.5
    return InspectedLayer(attention, 1.0 if scaling is None else float(scaling) / default)
