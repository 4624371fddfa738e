"""The parts of the library's LLaVA-NeXT that are trained, called one by one.

Shapes: as in `training/architecture.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaNextForConditionalGeneration
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from ray_job.demo.training.architecture import Size
from ray_job.demo.training.heads import grid_places
from ray_job.demo.training.targets import IGNORED


class LlavaNextNetwork:
    """A `Network`. A `Size` is the height and the width of a picture."""

    rows_at_once: int | None = 1  # of a few hundred tokens, up to twice as long as others
    patches_per_token = 1
    tower_name = "vision_tower"
    matrix_names: tuple[str, ...] = ("layers.", "multi_modal_projector")

    def __init__(self, model: LlavaNextForConditionalGeneration) -> None:
        self.module: nn.Module = model
        self.model: Any = model.model
        self.head = model.lm_head
        config: Any = model.config
        self.tower_width: int = config.vision_config.hidden_size
        self.decoder_width: int = config.text_config.hidden_size
        self.decoder_layers: nn.ModuleList = self.model.language_model.layers

    def num_crops(self, size: Size) -> int:
        """The overview's too."""
        config = self.model.config
        return int(image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size))

    def patches(self, crops_N3CC: Tensor) -> Tensor:
        """The CLIP tower up to the layer that is read, the one before the last, without the class token."""
        tower = self.model.vision_tower
        hidden_NPV: Tensor = tower.pre_layrnorm(tower.embeddings(crops_N3CC))
        for layer in tower.encoder.layers[:-1]:
            hidden_NPV = layer(hidden_NPV, attention_mask=None)
        return hidden_NPV[:, 1:]

    def features(self, patches_NPV: Tensor, sizes: Sequence[Size]) -> Tensor:
        """What the library's `get_image_features` does after the tower."""
        return self._pack(self.model.multi_modal_projector(patches_NPV), sizes, self.model.image_newline)

    def token_labels(self, targets_NP4: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Arranged by the library's own code, ends of lines included."""
        labels_NPX = torch.cat([targets_NP4, torch.cat([self._places(size) for size in sizes])], dim=-1)
        return self._pack(labels_NPX, sizes, labels_NPX.new_full((labels_NPX.shape[-1],), IGNORED))

    def embed(self, ids_BL: Tensor) -> Tensor:
        """Without pictures."""
        embeds_BLD: Tensor = self.model.language_model.embed_tokens(ids_BL)
        return embeds_BLD

    def hidden_states(self, embeds_BLD: Tensor, positions_BL: Tensor, mask_B1LL: Tensor) -> Tensor:
        """The decoder takes a mask of four axes as it is."""
        output = self.model.language_model(
            inputs_embeds=embeds_BLD, position_ids=positions_BL, attention_mask=mask_B1LL, use_cache=False
        )
        hidden_BLD: Tensor = output.last_hidden_state
        return hidden_BLD

    def logits(self, hidden_XD: Tensor) -> Tensor:
        """The head."""
        logits_XV: Tensor = self.head(hidden_XD)
        return logits_XV

    def _pack(self, values_NPX: Tensor, sizes: Sequence[Size], newline_X: Tensor) -> Tensor:
        """Each picture's overview, then its crops as one grid, without padding and with `newline_X` after each line."""
        pictures = torch.split(values_NPX, [self.num_crops(size) for size in sizes])
        packed, _ = self.model.pack_image_features(pictures, sizes, "default", image_newline=newline_X)
        return torch.cat(packed)

    def _places(self, size: Size) -> Tensor:
        """(N, P, 3) of a picture: `grid_places` of the overview and of the grid that its crops make."""
        config = self.model.config.vision_config
        side = config.image_size // config.patch_size
        height, width = select_best_resolution(size, self.model.config.image_grid_pinpoints)
        rows, cols = height // config.image_size, width // config.image_size
        grid = grid_places(rows * side, cols * side, is_overview=False).view(rows, side, cols, side, 3).transpose(1, 2)
        overview = grid_places(side, side, is_overview=True).view(1, side * side, 3)
        return torch.cat([overview, grid.reshape(rows * cols, side * side, 3)])
