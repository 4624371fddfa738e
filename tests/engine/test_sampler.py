"""Sampling: truncation, penalty, and random numbers that belong to a row alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ray_job.engine import sampler
from ray_job.engine.sampler import next_tokens, uniform
from ray_job.spec import GenerationParams


def params(**values: object) -> GenerationParams:
    return GenerationParams.model_validate({"temperature": 1.0, **values})


def draws(logits_V: torch.Tensor, param: GenerationParams, count: int) -> list[int]:
    return [next_tokens(logits_V[None], [param], [step], [()])[0] for step in range(count)]


def test_greedy_takes_the_most_likely_token() -> None:
    logits_BV = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert next_tokens(logits_BV, [params(temperature=0.0)] * 2, [0, 0], [(), ()]) == [1, 0]


def test_top_k_and_top_p_keep_only_the_likely_tokens() -> None:
    logits_V = torch.log(torch.tensor([0.1, 0.5, 0.15, 0.25]))
    assert set(draws(logits_V, params(top_k=2), 200)) == {1, 3}
    assert set(draws(logits_V, params(top_p=0.7), 200)) == {1, 3}
    assert set(draws(logits_V, params(top_p=0.01), 50)) == {1}
    assert set(draws(logits_V, params(), 400)) == {0, 1, 2, 3}


def test_draws_follow_the_distribution() -> None:
    probs_V = torch.tensor([0.1, 0.5, 0.15, 0.25])
    counts_V = torch.bincount(torch.tensor(draws(torch.log(probs_V), params(seed=7), 4000)), minlength=4)
    # Five standard deviations of a count of 4,000 draws.
    assert torch.all((counts_V / 4000 - probs_V).abs() < 5 * (probs_V * (1 - probs_V) / 4000).sqrt())


def test_temperature_sharpens() -> None:
    logits_V = torch.tensor([1.0, 2.0])
    cold = draws(logits_V, params(temperature=0.05), 200).count(1)
    hot = draws(logits_V, params(temperature=20.0), 200).count(1)
    assert cold == 200
    assert 70 < hot < 130


COLD = st.floats(0.0, 1e-5, exclude_max=True)


@settings(deadline=None)
@given(
    temperature=COLD,
    seed=st.integers(0, 2**63 - 1),
    scale=st.sampled_from([1e-6, 1.0, 100.0, 1e30]),
    others=st.fixed_dictionaries({}, optional={"top_p": st.floats(0.0, 1.0), "top_k": st.integers(-1, 12)}),
    penalty=st.sampled_from([1.0, 0.01, 1.3, 10.0]),
)
def test_as_the_temperature_goes_to_0_the_likeliest_token_is_drawn(
    temperature: float, seed: int, scale: float, others: dict[str, Any], penalty: float
) -> None:
    """At temperatures that float32 holds only as denormal numbers, or not at all, too."""
    logits_BV = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed % 1000)) * scale
    cold = params(temperature=temperature, seed=seed, repetition_penalty=penalty, **others)
    greedy = params(temperature=0.0, repetition_penalty=penalty)
    arguments = ([0, 5, 9], [[1, 2, 3]] * 3)
    assert next_tokens(logits_BV, [cold] * 3, *arguments) == next_tokens(logits_BV, [greedy] * 3, *arguments)


@settings(deadline=None)
@given(
    temperature=st.sampled_from([1e-5, 1e-4, 1e-3, 0.01]),
    seed=st.integers(0, 2**63 - 1),
    scale=st.sampled_from([1.0, 1e4, 1e34, 3e38]),
)
def test_low_temperatures_do_not_overflow(temperature: float, seed: int, scale: float) -> None:
    """Neighbouring logits are 1 apart or more, so the likeliest token has all of the probability, to 43 digits."""
    logits_V = torch.randperm(40, generator=torch.Generator().manual_seed(seed % 1000)) * (scale / 40)
    if scale == 1.0:
        logits_V = logits_V * 40
    assert draws(logits_V, params(temperature=temperature, seed=seed), 20) == [int(logits_V.argmax())] * 20


@pytest.mark.parametrize("values", [{"top_p": 0.0}, {"top_k": 1}, {"top_p": 1e-300}, {"top_p": 1e-12}])
def test_the_smallest_top_p_and_top_k_leave_the_likeliest_token(values: dict[str, Any]) -> None:
    logits_V = torch.randn(300, generator=torch.Generator().manual_seed(1)) * 0.01
    assert set(draws(logits_V, params(temperature=100.0, **values), 50)) == {int(logits_V.argmax())}


@pytest.mark.parametrize("values", [{"top_k": -1}, {"top_k": 0}, {"top_k": 10**30}, {"top_p": 1}])
def test_what_is_off_cuts_nothing_off(values: dict[str, Any]) -> None:
    logits_V = torch.randn(300, generator=torch.Generator().manual_seed(1))
    assert draws(logits_V, params(**values), 100) == draws(logits_V, params(), 100)


def test_the_repetition_penalty_lowers_seen_tokens_of_either_sign() -> None:
    logits_BV = torch.tensor([[2.0, 1.9, -1.0]])
    assert next_tokens(logits_BV, [params(temperature=0.0, repetition_penalty=1.5)], [0], [[0, 2]]) == [1]
    assert logits_BV.tolist() == [[2.0, pytest.approx(1.9), -1.0]]


@settings(deadline=None)
@given(st.data())
def test_a_row_draws_the_same_whatever_its_neighbours(data: st.DataObject) -> None:
    num_rows = data.draw(st.integers(2, 6))
    logits_BV = torch.randn(num_rows, 11, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    rows = [
        params(
            seed=data.draw(st.integers(0, 2**63 - 1)),
            temperature=data.draw(st.sampled_from([0.0, 0.7, 1.0, 1.5])),
            top_k=data.draw(st.integers(0, 12)),
            top_p=data.draw(st.floats(0.1, 1.0)),
        )
        for _ in range(num_rows)
    ]
    steps = [data.draw(st.integers(0, 1000)) for _ in range(num_rows)]
    together = next_tokens(logits_BV, rows, steps, [()] * num_rows)
    alone = [next_tokens(logits_BV[i : i + 1], [rows[i]], [steps[i]], [()])[0] for i in range(num_rows)]
    assert together == alone


def test_random_numbers_are_splitmix64s() -> None:
    """The generator's published outputs for seed 1234567, whose upper 53 bits are used."""
    known = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    seeds_S, counters_S = torch.full((5,), 1234567), torch.arange(5)
    assert uniform(seeds_S, counters_S).tolist() == [(value >> 11) / 2**53 for value in known]


def test_random_numbers_are_uniform_and_never_one() -> None:
    u_S = uniform(torch.zeros(100_000, dtype=torch.int64), torch.arange(100_000))
    assert float(u_S.min()) >= 0.0
    assert float(u_S.max()) < 1.0
    assert abs(float(u_S.mean()) - 0.5) < 0.005
    assert len(u_S.unique()) == 100_000


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    top_k=st.sampled_from([0, 1, 3, 7, 40, 200]),
    top_p=st.sampled_from([1.0, 0.99, 0.7, 0.05]),
    spread=st.sampled_from([0.1, 1.0, 8.0]),
)
def test_sorting_only_the_likeliest_changes_no_draw(seed: int, top_k: int, top_p: float, spread: float) -> None:
    logits_BV = torch.randn(6, 150, generator=torch.Generator().manual_seed(seed)) * spread
    assume(all(len(logits_V.unique()) == 150 for logits_V in logits_BV))  # equals have no order
    rows = [params(top_k=top_k, top_p=top_p, seed=seed + row) for row in range(6)]
    arguments = (rows, list(range(6)), [()] * 6)
    expected = next_tokens(logits_BV, *arguments)
    for candidates in (1, 2, 8, 64):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampler, "_CANDIDATES", candidates)
            assert next_tokens(logits_BV, *arguments) == expected
