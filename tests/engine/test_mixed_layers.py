"""Rows answer as a dense reference does with each alone, whatever their layers' windows, caps, heads and blocks."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ray_job.engine.continuous import ContinuousEngine
from ray_job.engine.interface import Vocabulary, run
from ray_job.engine.packed_model import AttentionLayer, PromptLayout
from ray_job.engine.stats import EngineStats
from ray_job.engine.varlen import Call, plain
from ray_job.errors import ErrorCode
from ray_job.rows import Picture, Sample
from ray_job.spec import GenerationParams
from tests.engine.mixed import MIXED, OPEN, WIDTH, Blocks, MixedModel, dense

VOCABULARY = Vocabulary(pad_id=0, stop_ids=frozenset(), detokenize=lambda ids: "")


def picture(number: int, rows: int, columns: int) -> Picture:
    rng = np.random.default_rng(number)
    patches = rng.standard_normal((rows, columns, 2 * WIDTH)).astype(np.float32)
    return Picture(f"{number}/{rows}/{columns}".encode(), {"patches": patches})


def sample(key: int, parts: Sequence[int | Picture], max_new_tokens: int) -> Sample:
    """A prompt of ids and pictures, in order."""
    ids: list[int] = []
    pictures: list[Picture] = []
    for part in parts:
        if isinstance(part, Picture):
            pictures.append(part)
            ids += [-len(pictures)] * (part.arrays["patches"].shape[0] * part.arrays["patches"].shape[1])
        else:
            ids.append(part)
    return Sample(key, ids, pictures, GenerationParams(max_new_tokens=max_new_tokens))


SMALL, WIDE, LARGE = picture(1, 2, 2), picture(2, 1, 5), picture(3, 4, 5)
SYSTEM = list(range(1, 31)) + list(range(5, 45))  # long enough that decoding rows read it together
PROMPTS: list[list[int | Picture]] = [
    [7, 8, 9],
    [7, LARGE, 9, 10],
    [7, LARGE, 9, 11, 12],
    [7, LARGE, SMALL, 13],  # two blocks side by side
    [SMALL, 5, WIDE],  # a block first and last
    [SMALL, 5, WIDE, 6],
    [LARGE],
    [*SYSTEM, 2, 3],
    [*SYSTEM, 2, 4],
    [*SYSTEM, WIDE, 4],
    [*SYSTEM, WIDE, 5, 6],
    [*SYSTEM[:40], LARGE, 1],
]
ROWS = [sample(key, parts, max_new_tokens=4 + 5 * (key % 3)) for key, parts in enumerate(PROMPTS)]


class Counted:
    """The reference kernel, which counts its calls."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(
        self, query_SND: Tensor, keys_PHD: Tensor, values_PHD: Tensor, call: Call, is_causal: bool
    ) -> tuple[Tensor, Tensor]:
        self.num_calls += 1
        return plain(query_SND, keys_PHD, values_PHD, call, is_causal)


class Short:
    """A model that is out of memory at certain steps."""

    def __init__(self, model: MixedModel, failing: Sequence[int]) -> None:
        self._model = model
        self._failing = failing
        self._num_steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, *args: Any) -> Any:
        self._num_steps += 1
        if self._num_steps in self._failing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._model.forward(*args)


def answers(model: Any, rows: Sequence[Sample] = ROWS, **options: Any) -> tuple[dict[int, list[int]], EngineStats]:
    engine = ContinuousEngine(model, VOCABULARY, answer_duplicates=False, **({"max_tokens": 2000} | options))
    results = list(run(engine, rows))
    assert [result.error for result in results if result.error] == []
    assert len(results) == len(rows)
    return {result.key: list(result.token_ids) for result in results}, engine.stats()


def references(model: MixedModel, rows: Sequence[Sample] = ROWS) -> dict[int, list[int]]:
    return {row.key: dense(model, row) for row in rows}


@functools.cache
def right_answers(layers: tuple[AttentionLayer, ...] = MIXED, blocks: Blocks = "pictures") -> dict[int, list[int]]:
    return references(MixedModel(layers, blocks))


SETTINGS: dict[str, dict[str, Any]] = {
    "alone": {"max_slots": 1, "prefix_sharing": False, "vision_cache_bytes": 0},
    "together": {"max_slots": 32, "min_shared_tokens": 3},
    "steps of 7": {"max_slots": 5, "step_tokens": 7, "min_shared_tokens": 1, "max_crops": 1},
    "steps of 1": {"max_slots": 3, "step_tokens": 1, "min_shared_tokens": 2},
    "small pool": {"max_slots": 8, "max_tokens": 110, "step_tokens": 33, "min_shared_tokens": 4},
    "ragged kernel": {"max_slots": 6, "step_tokens": 64, "min_shared_tokens": 4},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("blocks", ["pictures", "prompt", "none"])
@pytest.mark.parametrize("layers", [MIXED, OPEN], ids=["mixed", "open"])
def test_answers_are_those_of_each_row_alone(layers: tuple[AttentionLayer, ...], blocks: Blocks, setting: str) -> None:
    model = MixedModel(layers, blocks)
    rows = list(ROWS)
    random.Random(setting).shuffle(rows)
    kernel = Counted() if setting == "ragged kernel" else None
    found, stats = answers(model, rows, kernel=kernel, **SETTINGS[setting])
    expected = right_answers(layers, blocks)
    assert found == expected
    assert len({tuple(tokens) for tokens in expected.values()}) == len(ROWS), "answers tell rows apart"
    assert (stats.prefix_tokens_reused > 0) == (setting != "alone" and blocks != "prompt")
    if kernel is not None:
        assert (kernel.num_calls > 0) == (layers is OPEN)


def test_no_kernel_computes_a_soft_cap() -> None:
    layers = (AttentionLayer(num_heads=2, head_dim=8), AttentionLayer(num_heads=2, head_dim=8, softcap=0.8))
    kernel = Counted()
    found, _ = answers(MixedModel(layers, "none"), kernel=kernel)
    assert found == right_answers(layers, "none")
    assert kernel.num_calls == 0


@pytest.mark.parametrize("blocks", ["pictures", "prompt"])
def test_rows_put_back_are_computed_again(blocks: Blocks) -> None:
    """Short of memory twice, and with positions that turn faster after 85 tokens."""
    model = MixedModel(MIXED, blocks, switch=85)
    found, stats = answers(Short(model, [3, 8]), max_slots=6, step_tokens=64, min_shared_tokens=3)
    assert found == references(model)
    assert stats.memory_failures == 2
    assert stats.put_back_rows > 2


class Misplaced(MixedModel):
    """Has no layout, or a wrong one, for prompts that begin with certain tokens."""

    def layout(self, ids_L: npt.NDArray[np.int32], pictures: Sequence[Picture]) -> PromptLayout:
        if ids_L[0] == 40:
            raise IndexError("no such grid")
        layout = super().layout(ids_L, pictures)
        wrong = {41: layout.positions_AL[:, 1:], 42: layout.positions_AL[:2]}
        blocks = ((0, 99),) if ids_L[0] == 43 else layout.blocks
        return PromptLayout(wrong.get(int(ids_L[0]), layout.positions_AL), layout.offset, blocks)


def test_a_prompt_that_cannot_be_placed_fails_alone() -> None:
    bad = [sample(40 + number, [40 + number, SMALL, 5], 3) for number in range(4)]
    engine = ContinuousEngine(Misplaced(), VOCABULARY, max_tokens=500)
    results = {result.key: result for result in run(engine, [*ROWS[:2], *bad])}
    assert {key: list(results[key].token_ids) for key in (0, 1)} == {key: right_answers()[key] for key in (0, 1)}
    errors = [results[row.key].error for row in bad]
    assert [error.code for error in errors if error] == [ErrorCode.GENERATION_FAILED] * 4
    reasons = [
        "no such grid",
        "6 tokens on 3 axes have shape (3, 5)",
        "have shape (2, 6)",
        "beyond the prompt's 6 tokens",
    ]
    assert all(reason in error.message for reason, error in zip(reasons, errors, strict=True) if error)


def with_layers(change: Callable[[AttentionLayer], AttentionLayer]) -> Callable[[MixedModel], None]:
    def mutate(model: MixedModel) -> None:
        model.layers = [change(layer) for layer in model.layers]

    return mutate


def with_layout(change: Callable[[PromptLayout], PromptLayout]) -> Callable[[MixedModel], None]:
    def mutate(model: MixedModel) -> None:
        right = model.layout

        def layout(ids_L: npt.NDArray[np.int32], pictures: Sequence[Picture]) -> PromptLayout:
            return change(right(ids_L, pictures))

        model.layout = layout  # type: ignore[method-assign]

    return mutate


def moved(by: int) -> Callable[[AttentionLayer], AttentionLayer]:
    def change(layer: AttentionLayer) -> AttentionLayer:
        window = layer.sliding_window
        return layer if window is None else dataclasses.replace(layer, sliding_window=window + by)

    return change


WRONG: dict[str, Callable[[MixedModel], None]] = {
    "a window one wider": with_layers(moved(1)),
    "a window one narrower": with_layers(moved(-1)),
    "no soft cap": with_layers(lambda layer: dataclasses.replace(layer, softcap=None)),
    "causal blocks": with_layout(lambda layout: dataclasses.replace(layout, blocks=())),
    "no offset": with_layout(lambda layout: dataclasses.replace(layout, offset=0)),
    "turned axes": with_layout(lambda layout: dataclasses.replace(layout, positions_AL=layout.positions_AL[[2, 1, 0]])),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_seen(mistake: str) -> None:
    """The rows tell a model from one with a mistake in it, or else they would tell nothing about the engine."""
    wrong = MixedModel()
    WRONG[mistake](wrong)
    found, _ = answers(wrong)
    assert found != right_answers()
    assert found == references(wrong), "the engine does what it is told"


LAYERS = st.lists(
    st.builds(
        AttentionLayer,
        num_heads=st.sampled_from([1, 2]),
        head_dim=st.sampled_from([4, 6, 8]),
        sliding_window=st.sampled_from([None, 0, 1, 4, 11, 30]),
        softcap=st.sampled_from([None, None, 1.0]),
    ),
    min_size=1,
    max_size=3,
)
PARTS = st.lists(st.one_of(st.integers(1, 4), st.sampled_from([SMALL, WIDE, LARGE])), min_size=1, max_size=9)


@settings(max_examples=10, deadline=None)
@given(
    layers=LAYERS,
    blocks=st.sampled_from(["pictures", "pictures", "prompt", "none"]),
    switch=st.sampled_from([400, 12, 25]),
    prompts=st.lists(PARTS, min_size=1, max_size=5),
    has_kernel=st.booleans(),
    options=st.fixed_dictionaries(
        {
            "max_slots": st.sampled_from([1, 2, 5]),
            "max_tokens": st.sampled_from([200, 400]),
            "step_tokens": st.sampled_from([1, 2, 5, 7, 16, 33, 200]),
            "min_shared_tokens": st.sampled_from([1, 3, 8]),
            "prefix_sharing": st.booleans(),
            "max_crops": st.sampled_from([1, 4]),
        }
    ),
)
def test_any_layers_blocks_and_steps(
    layers: list[AttentionLayer],
    blocks: Blocks,
    switch: int,
    prompts: list[list[int | Picture]],
    has_kernel: bool,
    options: dict[str, Any],
) -> None:
    model = MixedModel(layers, blocks, switch)
    rows = [sample(key, parts, max_new_tokens=2 + key) for key, parts in enumerate(prompts)]
    found, _ = answers(model, rows, kernel=plain if has_kernel else None, **options)
    assert found == references(model, rows)
