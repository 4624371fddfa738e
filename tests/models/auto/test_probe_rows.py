"""Rows of a model's own processor to probe it with: each family's fit the model that they are prepared for."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_job.models.auto.gate import fit
from ray_job.models.auto.probe_rows import probe_rows
from ray_job.models.auto.processor import LibraryProcessor
from tests.models.auto.families import FAMILIES, write


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_the_own_processor_fit(name: str, tmp_path: Path) -> None:
    _, model = write(name, tmp_path)
    processor = LibraryProcessor.from_pretrained(tmp_path)
    rows = probe_rows(processor)
    assert [len(row.pictures) for row in rows] == [1, 1, 2, 0]
    assert processor.normalization is not None
    packed = fit(model, processor.normalization, rows)
    assert len(packed.layers) == model.config.get_text_config().num_hidden_layers
