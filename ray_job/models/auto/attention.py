"""The engine's attention under the library's own: a name that a decoder's configuration may choose.

No mask function goes by that name, and the library then makes no masks: tokens of many rows run through its layers side
by side, and who sees whom is the engine's business. What `attend` is arrives with each call of the model, as one more
keyword argument, which the library hands down to every layer's attention.

Shapes: T packed tokens of any rows, N query heads, H key/value heads, C head_dim.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ray_job.models.auto.unfit import Unfit

NAME = "ray_job_packed"
ATTEND = "ray_job_attend"  # the keyword argument


class AttendLayer(Protocol):
    """What receives each layer's attention."""

    def __call__(
        self, layer: int, query_TNC: Tensor, key_THC: Tensor, value_THC: Tensor, settings: dict[str, Any]
    ) -> Tensor:
        """Rotated queries and keys, and values → (T, N · C). `settings` is whatever else the library says."""


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """(1, N, T, C) of queries, (1, H, T, C) of keys and values → (1, T, N, C), as the library's own functions.

    Raises Unfit, on the first call of a model, where tokens of many rows cannot go side by side.
    """
    attend: AttendLayer | None = settings.pop(ATTEND, None)
    if attend is None:
        raise Unfit("its layers do not hand down to their attention what a call of the model says")
    if attention_mask is not None:
        raise Unfit("its layers make masks of their own")
    query_TNC, key_THC, value_THC = (each[0].transpose(0, 1) for each in (query, key, value))
    attended_TC = attend(module.layer_idx, query_TNC, key_THC, value_THC, settings)  # type: ignore[arg-type]
    return attended_TC.view(1, len(query_TNC), -1, value.shape[-1]), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
