"""Whether vLLM reads and computes a model as its authors do; else it does not answer. Imports no vLLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from ray_job.errors import ModelError
from ray_job.models.placement import Placement
from ray_job.models.processor import Processor
from ray_job.prompts.parts import ImageTag, Message, Text
from ray_job.rows import Picture, Sample
from ray_job.spec import GenerationParams

_SIZES = ((100, 60), (60, 150), (301, 97), (640, 480))


def check_model(config: Mapping[str, Any]) -> None:
    """Raises ModelError for a model that vLLM runs, and computes otherwise than its authors.

    Args:
        config: what config.json holds.
    """
    if config.get("model_type") == "paligemma":
        raise ModelError(
            "batching.engine: a prompt of PaliGemma sees all of itself, and in vLLM only its pictures do, so that "
            "answers would be others; set it to auto"
        )


def check_attention(sees_whole_pictures: bool, placement: Placement) -> None:
    """Raises ModelError where vLLM would leave out without a word that a picture's tokens see one another."""
    if placement.device == "cpu" and sees_whole_pictures:
        raise ModelError(
            "batching.engine: the tokens of a picture see one another in this model, and vLLM's attention for CPUs "
            "shows each the earlier ones alone, so that answers would be others; set it to auto, or use GPUs"
        )


def check_pictures(
    processor: Processor, options: Mapping[str, Any], rendered: Callable[[Sample], Sequence[int]]
) -> None:
    """Compares prompts that show a blank picture, of a few sizes.

    Args:
        processor: the job's; it leaves pictures undone and counts their tokens by the model's own processor.
        options: `model.processor_options`.
        rendered: vLLM's token ids of a prompt.

    Raises:
        ModelError: they differ, so that a plan would count wrong and answers not be the model's.
    """
    for size in _SIZES:
        image = Image.new("RGB", size, (127, 127, 127))
        prepared, counted = processor.prepare(image), processor.placeholder(*size)
        assert counted is not None
        message = Message("user", (ImageTag(1), Text("what?")))
        pictures = [Picture(b"blank %d x %d" % size, prepared.arrays)]
        undone = processor.encode_chat([message], [prepared.placeholder])
        found = rendered(Sample(0, undone, pictures, GenerationParams()))
        own = processor.encode_chat([message], [counted])
        if len(found) != len(own) or any(token not in (-1, other) for token, other in zip(own, found, strict=True)):
            given = f"with model.processor_options {dict(options)} " if options else ""
            advice = "leave them out, or set batching.engine: auto" if options else "set batching.engine: auto"
            raise ModelError(
                f"vLLM reads a prompt with a picture of {size[0]} × {size[1]} pixels {given}as {len(found)} tokens, "
                f"other ones than the {len(own)} that the model's own processor writes; {advice}"
            )
