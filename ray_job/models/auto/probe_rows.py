"""A few rows of a model's own processor, to compare engines with the library on before any row of a job is answered."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from ray_job.errors import RowError
from ray_job.models.auto.processor import LibraryProcessor
from ray_job.prompts.parts import ImageTag, Message, Text
from ray_job.rows import Picture, Sample
from ray_job.spec import GenerationParams

_SIZES = ((96, 64), (48, 112))  # width and height, small for the sake of time
_QUESTIONS = ("What is to be seen here?", "Is the left half of the picture brighter than the right one?")
_TEXT = "Name a colour."


def probe_rows(processor: LibraryProcessor) -> list[Sample]:
    """Two rows with a picture, and one without where the model's template takes such."""
    return [*_rows(processor)]


def _rows(processor: LibraryProcessor) -> Iterator[Sample]:
    params = GenerationParams(max_new_tokens=1)
    for key, ((width, height), question) in enumerate(zip(_SIZES, _QUESTIONS, strict=True)):
        pixels = np.random.default_rng(key).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        prepared = processor.prepare(Image.fromarray(pixels).resize((width, height)))
        message = Message("user", (ImageTag(1), Text(question)))
        ids = processor.encode_chat([message], [prepared.placeholder])
        yield Sample(key, ids, [Picture(bytes([key]), prepared.arrays)], params)
    try:
        yield Sample(len(_SIZES), processor.encode_chat([Message("user", (Text(_TEXT),))], []), (), params)
    except RowError:
        return
