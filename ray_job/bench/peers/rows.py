"""What jobs that are not ours share: a row to a sample as our preparing tasks make it, and an answer to its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from ray_job.models.processor import Processor
from ray_job.rows import ROW_ID, Picture, Sample, arrays_of
from ray_job.spec import GenerationParams
from ray_job.stages.prepare import Preparer


def sample_of(preparer: Preparer, row: Mapping[str, Any]) -> Sample:
    """The one question of a row, its `id` the key. Raises ValueError for a bad row."""
    prepared = preparer.row({**row, ROW_ID: row["id"]})
    [found] = prepared.samples
    if found["error"] is not None:
        raise ValueError(f"row {row['id']}: {found['error']['message']}")
    pictures = [Picture(each["digest"], arrays_of(each["arrays"])) for each in prepared.pictures]
    return Sample(row["id"], found["input_ids"], pictures, GenerationParams.model_validate_json(found["params"]))


def answer_text(processor: Processor, tokens: Sequence[int]) -> str:
    """The text up to a token that ends an answer."""
    return processor.decode(list(takewhile(lambda token: token not in processor.stop_ids, tokens)))
