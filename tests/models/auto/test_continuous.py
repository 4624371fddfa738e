"""Every family's tiny model in the continuous engine: token for token what the library generates for each row alone."""

from __future__ import annotations

import pytest

from ray_job.models.auto.gate import fit
from tests.models.auto.families import FAMILIES
from tests.models.auto.library_rows import Family, family, few
from tests.models.auto.settings import SETTINGS, answers

# One of each kind: windows, three axes of positions, deep-stack, tiles, tables of patches, blocks of tokens.
EVERY_TIME = {"llava_next_mistral_window", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma"}


@pytest.mark.parametrize(
    "name", [name if name in EVERY_TIME else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_ten_rows_as_the_library_generates_them(name: str) -> None:
    check(family(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_with_other_weights(name: str) -> None:
    check(family(name, seed=1))


def check(made: Family) -> None:
    """Equal in all settings, and rows that a mix-up would change."""
    assert len({tuple(ids) for ids in made.answers.values()}) >= 9
    packed = fit(made.model, made.normalization, few(made))
    try:
        for setting, options in SETTINGS.items():
            assert answers(packed, made.samples, **options) == made.answers, setting
    finally:
        packed.release()
