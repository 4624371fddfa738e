"""Positions of three axes: Qwen2-VL, Qwen2.5-VL, GLM-4V and their kin, by the model's own `get_rope_index`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ray_job.engine.packed_model import PromptLayout
from ray_job.models.auto.packed import PackedAuto
from ray_job.rows import Picture

GRID = "image_grid_thw"  # frames, rows and columns of patches


class MultimodalRope(PackedAuto):
    """A picture's tokens have a frame's, a row's and a column's number; what follows goes on after the largest."""

    num_axes = 3

    def layout(self, ids_L: npt.NDArray[np.int32], pictures: Sequence[Picture]) -> PromptLayout:
        """Positions (3, L)."""
        if not pictures:
            return PromptLayout.in_order(len(ids_L), self.num_axes)
        positions_A1L, delta = self._model.base_model.get_rope_index(
            torch.from_numpy(np.maximum(ids_L, 0, dtype=np.int64))[None],
            mm_token_type_ids=torch.from_numpy(ids_L < 0).int()[None],
            image_grid_thw=torch.from_numpy(np.concatenate([picture.arrays[GRID] for picture in pictures])),
        )
        return PromptLayout(positions_A1L[:, 0].numpy(), int(delta), self.blocks(ids_L))
