"""The last layer's MLP computes wanted tokens alone, and their logits are the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ray_job.models.auto.last_layer import LastLayer
from ray_job.models.auto.normalization import Normalization
from ray_job.models.auto.packed import PackedAuto
from tests.models.auto import decoders

HALF = Normalization(1 / 255, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@torch.inference_mode()
def test_logits_of_wanted_tokens(name: str) -> None:
    packed = PackedAuto(decoders.over(decoders.config(name)), HALF)
    mlp = packed._decoder.layers[-1].mlp.module
    seen: list[int] = []
    mlp.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    embeds_TW = packed.embed_tokens(torch.arange(7))
    positions_AT = torch.arange(7)[None]

    def logits(tokens: list[int]) -> Tensor:
        return packed.forward(embeds_TW, positions_AT, torch.zeros(7), torch.tensor(tokens), _sees_itself)

    every_TV = logits(list(range(7)))
    torch.testing.assert_close(logits([2, 6]), every_TV[[2, 6]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits([0]), every_TV[[0]], atol=1e-5, rtol=1e-5)
    assert seen == [7, 2, 1]
    packed.release()
    assert packed._decoder.layers[-1].mlp is mlp


def _sees_itself(layer: int, query_TNC: Tensor, key_THC: Tensor, value_THC: Tensor) -> Tensor:
    return value_THC.repeat_interleave(query_TNC.shape[1] // value_THC.shape[1], dim=1).flatten(1)


class TellsMore(nn.Module):
    def forward(self, hidden_1TD: Tensor) -> tuple[Tensor, int]:
        return 2 * hidden_1TD, 5


class Decoder(nn.Module):
    def __init__(self, mlp: nn.Module | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Module()])
        if mlp is not None:
            self.layers[0].mlp = mlp


def test_an_mlp_that_returns_more_than_a_tensor_runs_whole() -> None:
    decoder = Decoder(TellsMore())
    last = LastLayer(decoder)
    last.put_in()
    hidden_1TD = torch.ones(1, 4, 3)
    with last.wants(torch.tensor([1])):
        found_1TD, five = decoder.layers[0].mlp(hidden_1TD)  # type: ignore[operator]
    assert torch.equal(found_1TD, 2 * hidden_1TD)
    assert five == 5


@pytest.mark.parametrize("decoder", [Decoder(None), nn.Linear(1, 1)])
def test_other_decoders_stay_as_they_are(decoder: nn.Module) -> None:
    before = dict(decoder.named_modules())
    last = LastLayer(decoder)
    last.put_in()
    with last.wants(torch.tensor([1])):
        assert dict(decoder.named_modules()) == before
    last.take_out()
    assert dict(decoder.named_modules()) == before
