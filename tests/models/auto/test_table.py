"""README's table of models says what the tests run, and each model that it names has its test."""

from __future__ import annotations

import re
from pathlib import Path

from tests.models.auto.families import FAMILIES
from tests.models.auto.models_alone import MODELS
from tests.models.auto.table import ALONE, COMPARED, table

README = Path(__file__).parents[3] / "README.md"


def test_every_model_that_is_tested_is_named_and_no_other() -> None:
    assert set(COMPARED) == set(FAMILIES)
    assert set(ALONE) == set(MODELS)


def test_the_readme_has_the_table() -> None:
    found = re.search(r"<!-- models -->\n(.*?)\n<!-- /models -->", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, "README has no table of models"
    assert found[1] == table()
