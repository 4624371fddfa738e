"""Crops to the feature rows that take the placeholders' places: CLIP tower, 2×2 merge, separators, projector.

Module and parameter names are the official checkpoint's, its spelling `pre_layrnorm` included.

Shapes: H, W pixels; N crops, flat over all pictures; C crop side; P patches of a crop; V tower width; M merged
width, 4·V; S tokens along one side of a crop; T tokens of one picture; D decoder width. Equal to the official features
of Phi-3-vision-128k-instruct, measured by tests/models/phi3_vision/test_model.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ray_job.models.phi3_vision.attention import Attention
from ray_job.models.phi3_vision.configuration import Phi3VisionConfig, VisionConfig
from ray_job.models.phi3_vision.crops import pixels_to_crops
from ray_job.models.phi3_vision.vision_layer import PatchEmbeddings, VisionLayer


class VisionTower(nn.Module):
    """CLIP up to its last layer but one, class token dropped."""

    def __init__(self, config: VisionConfig, attention: Attention) -> None:
        super().__init__()
        layers = [VisionLayer(config, attention) for _ in range(config.num_hidden_layers)]
        self.embeddings = PatchEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, crops_N3CC: Tensor) -> Tensor:
        """(N, 3, C, C), any float dtype → (N, P, V) in the model's dtype."""
        hidden_NPV: Tensor = self.pre_layrnorm(self.embeddings(crops_N3CC))
        layers = self.encoder["layers"]
        assert isinstance(layers, nn.ModuleList)
        # The last layer and post_layernorm are in every checkpoint, and nothing reads them.
        for layer in layers[:-1]:
            hidden_NPV = layer(hidden_NPV)
        return hidden_NPV[:, 1:]


class PictureEmbedding(nn.Module):
    """Normalised crops of any number of pictures to one (T, D) tensor for each picture."""

    def __init__(self, config: Phi3VisionConfig, attention: Attention) -> None:
        super().__init__()
        self.side = config.tokens_per_crop_side
        self.crop_size = config.vision.image_size
        merged, hidden = config.merged_dim, config.hidden_size
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, merged))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, merged))
        self.img_projection = nn.Sequential(nn.Linear(merged, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.img_processor = nn.ModuleDict({"vision_model": VisionTower(config.vision, attention)})

    @property
    def tower(self) -> VisionTower:
        """The CLIP tower under its checkpoint name."""
        tower = self.img_processor["vision_model"]
        assert isinstance(tower, VisionTower)
        return tower

    def encode(
        self,
        pictures: Sequence[Tensor],
        image_mean: Sequence[float],
        image_std: Sequence[float],
        max_crops: int | None = None,
    ) -> list[Tensor]:
        """HD pixels, uint8 (H, W, 3) each on any device, to features (T, D) each, on the weights' device.

        All crops pass the tower as one flat batch, or in chunks of `max_crops`; a picture's features do
        not depend on its neighbours. Raises ValueError if a picture is not whole crops.
        """
        if not len(pictures):
            return []
        crops = []
        for picture_HW3 in pictures:
            on_device_HW3 = picture_HW3.to(self.glb_GN.device, non_blocking=True)
            crops.append(pixels_to_crops(on_device_HW3, self.crop_size, image_mean, image_std))
        sizes = [(picture.shape[0] // self.crop_size, picture.shape[1] // self.crop_size) for picture in pictures]
        features: list[Tensor] = self(torch.cat(crops), sizes, max_crops)
        return features

    def forward(
        self, crops_N3CC: Tensor, sizes: Sequence[tuple[int, int]], max_crops: int | None = None
    ) -> list[Tensor]:
        """Features of each picture, in order.

        `sizes` has (rows, cols) per picture; its crops are the global view and then rows·cols crops.
        `max_crops` bounds how many crops go through the tower at once. Raises ValueError if the crops
        are not as many as the sizes ask for.
        """
        counts = [1 + rows * cols for rows, cols in sizes]
        if sum(counts) != len(crops_N3CC):
            raise ValueError(f"{len(crops_N3CC)} crops given, the sizes {list(sizes)} ask for {sum(counts)}")
        if not sizes:
            return []
        chunks = torch.split(crops_N3CC, max_crops or len(crops_N3CC))
        merged_NSSM = torch.cat([self.merge(self.tower(chunk_N3CC)) for chunk_N3CC in chunks])
        pictures = zip(torch.split(merged_NSSM, counts), sizes, strict=True)
        rows_TM = [self.arrange(picture_NSSM, rows, cols) for picture_NSSM, (rows, cols) in pictures]
        projected: Tensor = self.img_projection(torch.cat(rows_TM))
        return list(torch.split(projected, [len(row) for row in rows_TM]))

    def merge(self, patches_NPV: Tensor) -> Tensor:
        """(N, P, V) → (N, S, S, M): each 2×2 of patches side by side, ordered row, column, channel."""
        count, _, width = patches_NPV.shape
        blocks = patches_NPV.reshape(count, self.side, 2, self.side, 2, width).transpose(2, 3)
        return blocks.reshape(count, self.side, self.side, 4 * width)

    def arrange(self, crops_NSSM: Tensor, rows: int, cols: int) -> Tensor:
        """One picture's global view and crops → (T, M): the crops' grid, a separator, the global view."""
        merged = crops_NSSM.shape[-1]
        grid = crops_NSSM[1:].reshape(rows, cols, self.side, self.side, merged).transpose(1, 2)
        local_TM = self._with_newlines(grid.reshape(rows * self.side, cols * self.side, merged))
        global_TM = self._with_newlines(crops_NSSM[0])
        return torch.cat([local_TM, self.glb_GN[0], global_TM])

    def _with_newlines(self, grid_RCM: Tensor) -> Tensor:
        """(rows, cols, M) → (rows · (cols + 1), M), sub_GN after each row."""
        newlines_R1M = self.sub_GN[0].expand(grid_RCM.shape[0], 1, -1)
        return torch.cat([grid_RCM, newlines_R1M], dim=1).flatten(0, 1)
