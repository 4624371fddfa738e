"""Does a library model fit the continuous engine? If not, why: what does not fit would be silently wrong, or fail.

Three looks, each at what the others cannot see: its configuration, its layers' calls (`inspection`), and its answers to
a few rows side by side against the library's own, each alone (`probe`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray_job.engine.memory import is_out_of_memory
from ray_job.errors import first_line
from ray_job.models.auto.configuration import rope_types
from ray_job.models.auto.families.table import family_of
from ray_job.models.auto.normalization import Normalization
from ray_job.models.auto.packed import PackedAuto
from ray_job.models.auto.probe import check_answers
from ray_job.models.auto.unfit import Unfit
from ray_job.rows import Sample

_ATTENTION = {"full_attention", "sliding_attention"}
_ROPE = {"default", "linear", "llama3", "yarn", "proportional"}  # a token's factors follow from its own position
_FIELDS = {  # of a text configuration that are set
    "kv_lora_rank": "its layers keep latent keys",
    "num_kv_shared_layers": "its layers share keys",
    "attention_chunk_size": "it attends within chunks",
    "hidden_size_per_layer_input": "its layers have embeddings of tokens of their own",
    "alibi": "it adds a bias for positions to attention scores",
    "cross_attention_layers": "its pictures are attended to beside the text",
    "is_encoder_decoder": "it has an encoder for the prompt",
}


def fit(
    model: Any, normalization: Normalization, samples: Sequence[Sample], free_bytes: int | None = None
) -> PackedAuto:
    """The model as the continuous engine drives it.

    Args:
        model: of `AutoModelForImageTextToText`, on its device, in evaluation mode.
        normalization: the image processor's.
        samples: rows to compare, prepared by the model's own processor, of which one or more have pictures.
        free_bytes: as for `PackedAuto`.

    Raises:
        Unfit: it would be wrong; the model is as it was.
    """
    reason = misfit(model.config)
    if reason is not None:
        raise Unfit(reason)
    try:
        packed = family_of(model.config.model_type)(model, normalization, free_bytes)
        try:
            check_windows(packed, model.get_decoder().config)
            check_answers(packed, model, samples)
        except BaseException:
            packed.release()
            raise
    except Unfit:
        raise
    except Exception as error:  # whatever a model's own code raises for what it was not made for
        if is_out_of_memory(error):
            raise
        raise Unfit(f"its own code cannot run packed tokens ({type(error).__name__}: {first_line(error)})") from error
    return packed


def misfit(config: Any) -> str | None:
    """Why a model of this configuration does not fit, if that can be told from it; needs no weights."""
    text = config.get_text_config(decoder=True)
    odd = sorted(set(_layer_types(text)) - _ATTENTION)
    if odd:
        return f"not all its layers are plain attention, to all tokens or within a window ({', '.join(odd)})"
    for field, reason in _FIELDS.items():
        if _is_set(text, field):
            return f"{reason} ({field})"
    unknown = sorted(rope_types(text) - _ROPE)
    if unknown:
        return f"its rotary factors may follow from the longest row of a batch (rope_type {unknown[0]!r})"
    return None


def check_windows(packed: PackedAuto, text: Any) -> None:
    """Raises Unfit unless the windows that layers tell their attention are those that masks are made of."""
    window = getattr(text, "sliding_window", None)
    types = _layer_types(text) or ["sliding_attention" if window else "full_attention"] * len(packed.layers)
    expected = [window - 1 if window and each == "sliding_attention" else None for each in types]
    found = [layer.sliding_window for layer in packed.layers]
    if found != expected:
        raise Unfit(f"its layers have windows {found}, its configuration says {expected}")


def _layer_types(text: Any) -> list[str]:
    return list(getattr(text, "layer_types", None) or [])


def _is_set(text: Any, field: str) -> bool:
    try:
        return bool(getattr(text, field, None))
    except Exception:  # a field that differs by layer is set
        return True
