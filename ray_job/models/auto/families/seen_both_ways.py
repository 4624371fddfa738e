"""Prompts of which some tokens see later ones: a picture's in Gemma 3 and large Gemma 4, all of them in PaliGemma."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ray_job.models.auto.packed import PackedAuto


class PictureBlocks(PackedAuto):
    """A picture's tokens see one another. The probe refuses a window that a picture does not fit in."""

    def blocks(self, ids_L: npt.NDArray[np.int32]) -> tuple[tuple[int, int], ...]:
        """Each run of pictures' tokens."""
        edges = np.flatnonzero(np.diff(ids_L < 0, prepend=False, append=False)).tolist()
        return tuple(zip(edges[::2], edges[1::2], strict=True))


class ChosenPictureBlocks(PictureBlocks):
    """A picture's tokens see one another where the configuration says so."""

    def blocks(self, ids_L: npt.NDArray[np.int32]) -> tuple[tuple[int, int], ...]:
        """Each run of pictures' tokens, or none."""
        chosen = self._decoder.config.use_bidirectional_attention == "vision"
        return super().blocks(ids_L) if chosen else ()


class PromptBlock(PackedAuto):
    """The whole prompt sees itself, and positions count from 1."""

    first_position = 1

    def blocks(self, ids_L: npt.NDArray[np.int32]) -> tuple[tuple[int, int], ...]:
        """One, of all tokens."""
        return ((0, len(ids_L)),)

    def token_types(self, ids_L: npt.NDArray[np.int32], prompt_len: int) -> npt.NDArray[np.int64]:
        """0 for tokens that see one another, and 1 for an answer's."""
        return (np.arange(len(ids_L)) >= prompt_len).astype(np.int64)
