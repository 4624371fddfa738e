"""Pictures are encoded once, some in each step, in the order in which rows need them, and fail alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ray_job.engine.encoder import PictureEncoder
from ray_job.engine.running import RunningRow
from ray_job.engine.stats import EngineStats, Meter
from ray_job.engine.vision_cache import VisionCache
from ray_job.models.phi3_vision.packed import PackedPhi3Vision
from ray_job.models.phi3_vision.processor import PIXELS
from ray_job.rows import Picture, Sample
from ray_job.spec import GenerationParams
from tests.engine.tiny import VOCABULARY, num_tokens, picture, prompt, tiny_model


class Watched:
    """The tiny model, which notes what it encodes, and fails where it is told to."""

    def __init__(self, fails: Sequence[Picture] = (), error: Exception | None = None) -> None:
        self._model = PackedPhi3Vision(tiny_model())
        self._fails = [shown.arrays[PIXELS] for shown in fails]
        self._error = error or ValueError("no such picture")
        self.calls: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode_pictures(self, pictures: Sequence[Picture], max_crops: int | None = None) -> list[Tensor]:
        self.calls.append(len(pictures))
        for pixels in (each.arrays[PIXELS] for each in pictures):
            if any((pixels == failing).all() for failing in self._fails if pixels.shape == failing.shape):
                raise self._error
        return self._model.encode_pictures(pictures, max_crops)


class Bench:
    def __init__(self, model: Watched, max_crops: int = 100, cache_bytes: int = 10**6) -> None:
        self.model = model
        self.meter = Meter()
        self.encoder = PictureEncoder(model, VisionCache(cache_bytes), max_crops, self.meter)

    def serve(self, *rows: RunningRow) -> dict[RunningRow, Exception]:
        return self.encoder.serve(rows)

    @property
    def stats(self) -> EngineStats:
        return self.meter.stats()


def row(*shown: Picture) -> RunningRow:
    sample = Sample(0, prompt([5, 6], shown), list(shown), GenerationParams(max_new_tokens=3))
    found = RunningRow.of(sample, VOCABULARY, PackedPhi3Vision(tiny_model()))
    found.is_ready = not shown
    return found


def counts(stats: EngineStats) -> tuple[int, int, int]:
    return stats.pictures_wanted, stats.pictures_encoded, stats.crops


CAT, DOG, BIG = picture(1), picture(2), picture(3, 2, 2)  # 2, 2 and 5 crops


def test_each_picture_is_encoded_once_for_all_rows() -> None:
    bench = Bench(Watched())
    first, second = row(CAT, DOG), row(DOG, DOG)
    assert bench.serve(first, second) == {}
    assert first.is_ready
    assert second.is_ready
    assert bench.model.calls == [2]
    assert counts(bench.stats) == (4, 2, 4)
    (expected_TD,) = PackedPhi3Vision(tiny_model()).encode_pictures([DOG])
    assert len(expected_TD) == num_tokens(DOG)
    for features_TD in (first.features[2], second.features[1], second.features[2]):
        torch.testing.assert_close(features_TD, expected_TD, atol=1e-5, rtol=1e-5)
    later = row(CAT)
    assert bench.serve(first, later) == {}
    assert later.is_ready
    assert bench.model.calls == [2], "it was kept"
    assert counts(bench.stats) == (5, 2, 4)


def test_a_step_encodes_only_so_many_crops_in_the_order_of_the_rows() -> None:
    bench = Bench(Watched(), max_crops=4)
    rows = [row(CAT), row(DOG), row(picture(4)), row(BIG)]
    ready = []
    for _ in range(4):
        bench.serve(*rows)
        ready.append([each.is_ready for each in rows])
    assert ready[0] == [True, True, False, False]
    assert ready[1] == [True, True, True, False]
    assert ready[2] == [True] * 4, "one picture is always encoded, however many crops it has"
    assert bench.model.calls == [2, 1, 1]


def test_a_picture_that_does_not_fit_a_step_holds_later_ones_back() -> None:
    bench = Bench(Watched(), max_crops=4)
    rows = [row(CAT), row(BIG), row(DOG)]
    bench.serve(*rows)
    assert [each.is_ready for each in rows] == [True, False, False]


def test_features_come_to_a_row_step_by_step() -> None:
    bench = Bench(Watched(), max_crops=2, cache_bytes=0)
    both = row(CAT, DOG)
    bench.serve(both)
    assert (sorted(both.features), both.is_ready) == ([1], False)
    bench.serve(both)
    assert (sorted(both.features), both.is_ready) == ([1, 2], True)


def test_nothing_to_encode_costs_nothing() -> None:
    bench = Bench(Watched())
    assert bench.serve(row()) == {}
    assert bench.serve() == {}
    assert bench.model.calls == []
    assert bench.stats == EngineStats()


def test_a_picture_that_cannot_be_encoded_fails_its_rows_alone() -> None:
    bench = Bench(Watched(fails=[DOG]))
    rows = [row(CAT), row(DOG), row(CAT, DOG), row(BIG)]
    failures = bench.serve(*rows)
    assert set(failures) == {rows[1], rows[2]}
    assert {str(error) for error in failures.values()} == {"no such picture"}
    assert (rows[0].is_ready, rows[3].is_ready) == (True, True)
    assert (rows[1].is_ready, rows[2].is_ready) == (False, False)
    assert bench.model.calls == [3, 1, 1, 1]
    assert counts(bench.stats)[1:] == (2, 7)


def test_a_row_with_too_few_placeholders_fails_alone() -> None:
    bench = Bench(Watched())
    short = RunningRow.of(Sample(0, [1, -1, 5], [CAT], GenerationParams()), VOCABULARY, PackedPhi3Vision(tiny_model()))
    short.is_ready = False
    good = row(CAT)
    failures = bench.serve(short, good)
    assert list(failures) == [short]
    assert "1 placeholders" in str(failures[short])
    assert good.is_ready


def test_too_little_memory_is_nobodys_fault() -> None:
    bench = Bench(Watched(fails=[DOG], error=torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        bench.serve(row(CAT), row(DOG))
    with pytest.raises(torch.OutOfMemoryError):
        bench.serve(row(DOG))


def test_clearing_keeps_only_what_rows_hold() -> None:
    bench = Bench(Watched())
    held, gone = row(CAT), row(DOG)
    bench.serve(held, gone)
    gone.features.clear()
    bench.encoder.clear()
    again = [row(CAT), row(DOG)]
    bench.serve(*again)
    assert bench.model.calls == [2, 1]
