"""A few rows that a model's own processor prepares, to try the model with when it is loaded."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from ray_job.errors import RowError
from ray_job.models.processor import Placeholder, PreparedPicture, Processor
from ray_job.prompts.parts import ImageTag, Message, Text
from ray_job.rows import Picture, Sample
from ray_job.spec import GenerationParams

_SIZE = (64, 48)  # pixels: small, and not square


def probe_rows(processor: Processor) -> list[Sample]:
    """A row with a picture, and a row with two others, or with one where the model takes no more."""
    first, *others = (processor.prepare(_noise(seed)) for seed in range(3))
    question = Text("How many of them are there, and which stands first?")
    rows = [_sample(processor, [first], (ImageTag(1), question))]
    try:
        rows.append(_sample(processor, others, (Text("Compare: "), ImageTag(1), Text(" and "), ImageTag(2), question)))
    except RowError:
        rows.append(_sample(processor, others[:1], (ImageTag(1), Text("What is this? Say it in a word."))))
    return rows


def _sample(processor: Processor, pictures: list[PreparedPicture], parts: tuple[Text | ImageTag, ...]) -> Sample:
    placeholders: list[Placeholder] = [picture.placeholder for picture in pictures]
    ids = processor.encode_chat([Message("user", parts)], placeholders)
    return Sample(0, ids, [_picture(picture) for picture in pictures], GenerationParams())


def _picture(prepared: PreparedPicture) -> Picture:
    digest = hashlib.blake2b(digest_size=16)
    for array in prepared.arrays.values():
        digest.update(np.ascontiguousarray(array).data)
    return Picture(digest.digest(), prepared.arrays)


def _noise(seed: int) -> Image.Image:
    width, height = _SIZE
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
