"""A picture's whole numbers, 0 to 255, to what a vision tower reads; on its device, so that rows travel as uint8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Normalization:
    """An image processor's own numbers: (pixel · rescale_factor − mean) / std, by channel."""

    rescale_factor: float = 1.0
    mean: tuple[float, ...] = ()  # of each channel; empty: the processor only rescales
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} deviations; one of each for every channel")

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (…, channels, H, W), or (patches, channels · rest), a patch's channels one after another → float32."""
        import torch

        scaled = pixels.to(torch.float32) * self.rescale_factor
        if not self.mean:
            return scaled
        channels = len(self.mean)
        shape = (channels, 1) if pixels.ndim == 2 else (channels, 1, 1)
        mean = torch.tensor(self.mean, device=pixels.device).view(shape)
        std = torch.tensor(self.std, device=pixels.device).view(shape)
        by_channel = scaled.view(len(pixels), channels, -1) if pixels.ndim == 2 else scaled
        return ((by_channel - mean) / std).view(pixels.shape)


def normalization_of(values: Sequence[float] | float | None, channels: int = 3) -> tuple[float, ...]:
    """A mean or deviation as image processors state it, one number for all channels or one for each."""
    if values is None:
        return ()
    return (float(values),) * channels if isinstance(values, int | float) else tuple(map(float, values))
