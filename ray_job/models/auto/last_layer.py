"""The MLP of a decoder's last layer, for those tokens alone whose next one is wanted: nobody reads the others' output.

Shapes: T packed tokens of any rows, S of them whose next token is wanted, D decoder width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class LastLayer:
    """The last of a decoder's layers; one that has no module `mlp` stays as it is."""

    def __init__(self, decoder: Any) -> None:
        layers = getattr(decoder, "layers", None)
        layer = layers[-1] if isinstance(layers, nn.ModuleList) and len(layers) else None
        mlp = getattr(layer, "mlp", None)
        self._layer, self._mlp = layer, mlp
        self._wanted_only = _WantedOnly(mlp) if isinstance(mlp, nn.Module) else None

    def put_in(self) -> None:
        """Lets the layer compute so."""
        if self._wanted_only is not None:
            setattr(self._layer, "mlp", self._wanted_only)  # noqa: B010 - mypy knows no such attribute

    def take_out(self) -> None:
        """Gives the layer its own module back."""
        if self._wanted_only is not None:
            setattr(self._layer, "mlp", self._mlp)  # noqa: B010

    @contextmanager
    def wants(self, tokens_S: Tensor) -> Iterator[None]:
        """While the model runs, these tokens are wanted, and no others."""
        if self._wanted_only is None:
            yield
            return
        self._wanted_only.tokens_S = tokens_S
        try:
            yield
        finally:
            self._wanted_only.tokens_S = None


class _WantedOnly(nn.Module):
    """A module that treats each token by itself, run on some of them; zeros for the others."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.tokens_S: Tensor | None = None  # None: all

    def forward(self, hidden_1TD: Tensor) -> Any:
        """(1, T, D) → what the module makes of it, of the shape (1, T, D)."""
        if self.tokens_S is None or len(self.tokens_S) == hidden_1TD.shape[1]:
            return self.module(hidden_1TD)
        found_1SD = self.module(hidden_1TD[:, self.tokens_S])
        if not isinstance(found_1SD, Tensor):  # a mixture of experts may say more than that
            return self.module(hidden_1TD)
        return found_1SD.new_zeros(hidden_1TD.shape).index_copy_(1, self.tokens_S, found_1SD)
