"""A few rows of a model's own processor, to compare engines with the library on before any row of a job is answered."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from PIL import Image

from ray_job.errors import RowError
from ray_job.models.auto.processor import LibraryProcessor
from ray_job.models.processor import PreparedPicture
from ray_job.prompts.parts import ImageTag, Message, Part, Text
from ray_job.rows import Picture, Sample
from ray_job.spec import GenerationParams

_SIZES = ((96, 64), (48, 112), (96, 64), (96, 64))  # width and height, small for the sake of time
_QUESTIONS = ("What is to be seen here?", "Is the left half of the picture brighter than the right one?")
_PAIR = (Text("Compare "), ImageTag(1), Text(" with "), ImageTag(2), Text("."))  # of one size: what joins, is joined
_TEXT = "Name a colour."


def probe_rows(processor: LibraryProcessor) -> list[Sample]:
    """Two rows with a picture, then, where the model takes such, one with two pictures and one without."""
    prepared = [_prepared(processor, number) for number in range(len(_SIZES))]
    rows = [_row(processor, (ImageTag(1), Text(_QUESTIONS[key])), [prepared[key]], key) for key in range(2)]
    for parts, pictures in ((_PAIR, prepared[2:]), ((Text(_TEXT),), [])):
        with suppress(RowError):
            rows.append(_row(processor, parts, pictures, len(rows)))
    return rows


def _prepared(processor: LibraryProcessor, number: int) -> PreparedPicture:
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return processor.prepare(Image.fromarray(pixels).resize(_SIZES[number]))


def _row(processor: LibraryProcessor, parts: tuple[Part, ...], prepared: list[PreparedPicture], key: int) -> Sample:
    ids = processor.encode_chat([Message("user", parts)], [each.placeholder for each in prepared])
    pictures = [Picture(bytes([key, number]), each.arrays) for number, each in enumerate(prepared)]
    return Sample(key, ids, pictures, GenerationParams(max_new_tokens=1))
