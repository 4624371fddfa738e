"""Every family's tiny model in the continuous engine: token for token what the library generates for each row alone."""

from __future__ import annotations

import pytest
import torch

from ray_job.models.auto.gate import fit
from tests.models.auto.families import FAMILIES
from tests.models.auto.library_rows import Family, family, few
from tests.models.auto.settings import SETTINGS, answers

# One of each kind: windows, three axes of positions, deep-stack, tiles, tables of patches, blocks of tokens.
EVERY_TIME = {"llava_next_mistral_window", "qwen2_5_vl", "qwen3_vl", "smolvlm", "gemma3", "paligemma", "mistral3"}


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
    packed = fit(made.model, made.normalization, few(made))
    assert len({tuple(ids) for ids in made.answers.values()}) >= 9
    for setting, options in SETTINGS.items():
        assert answers(packed, made.samples, **options) == made.answers, setting


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3"])
def test_in_bfloat16_a_row_is_answered_as_alone(name: str) -> None:
    """Greedy tokens of random weights are near ties: most rows agree, and each with its logits within rounding."""
    made = family(name)
    model = family.__wrapped__(name).model.to(torch.bfloat16)
    packed = fit(model, made.normalization, few(made))
    alone = answers(packed, made.samples, **SETTINGS["one by one"])
    together = answers(packed, made.samples, **SETTINGS["together"])
    same = sum(alone[key] == together[key] for key in alone)
    assert same >= 7, same
